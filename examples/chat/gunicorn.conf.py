"""One worker: the rooms are in its memory. See README.rst."""

import os

from gmultisocket.contrib.gunicorn import post_worker_init, worker_int

#: The hooks close the WebSockets of a worker that stops. gunicorn finds them by their names.
hooks = [post_worker_init, worker_int]

bind = "127.0.0.1:8000"
chdir = os.path.dirname(os.path.abspath(__file__))
wsgi_app = "chat:application"
worker_class = "gevent"
workers = 1
worker_connections = 10_000
