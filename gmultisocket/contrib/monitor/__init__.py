"""A live page of what the sockets of a program do, with health checks and metrics beside it: a WSGI application.

::

    from gmultisocket.contrib.monitor import Monitor

    application = Monitor("/monitor", application, authorize=is_admin)

It exists only where it is mounted, and measures only while somebody looks.
"""

from __future__ import annotations

from .application import Monitor

__all__ = ["Monitor"]
