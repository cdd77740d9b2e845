"""Living in gevent's event loop: waiting, periodic work, accepting, and which thread and process an object belongs to.

Nothing here knows of sockets, pipes or messages.
"""
