"""Two workers, and the hub that joins them; see README.rst."""

import os

from gmultisocket.contrib.gunicorn import hub_hooks, post_worker_init, worker_int

#: The hooks close the WebSockets of a worker that stops. gunicorn finds them by their names.
hooks = [post_worker_init, worker_int]

bind = "127.0.0.1:8000"
chdir = os.path.dirname(os.path.abspath(__file__))
wsgi_app = "dashboard:application"
worker_class = "gevent"
workers = 2
worker_connections = 10_000  # browsers for each worker
#: A reload reads this file again, and must keep the address.
os.environ.setdefault("PLANE", f"ipc:///tmp/dashboard-{os.getpid()}")
#: Held by the worker in which the time of the greenhouses passes.
os.environ.setdefault("DASHBOARD_LOCK", os.environ["PLANE"].removeprefix("ipc://") + ".greenhouses")
on_starting, on_exit = hub_hooks(os.environ["PLANE"])
