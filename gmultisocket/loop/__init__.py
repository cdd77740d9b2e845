"""Tools for gevent's event loop: waiting, periodic work, accepting, and the thread and process of an object.

Nothing here depends on sockets, pipes or messages.
"""
