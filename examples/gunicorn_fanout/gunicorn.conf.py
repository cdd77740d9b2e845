"""Two gevent workers, and the switch that joins them: see README.rst."""

import os
import shutil
import subprocess
import sys
import tempfile

from gmultisocket.contrib.gunicorn import post_worker_init, worker_int

#: The hooks by which browsers hear that their worker goes away. gunicorn finds them by their names.
hooks = [post_worker_init, worker_int]

bind = "127.0.0.1:8000"
chdir = os.path.dirname(os.path.abspath(__file__))
wsgi_app = "fanout:application"
worker_class = "gevent"
workers = 2
worker_connections = 10_000  # browsers for each worker
max_requests = 0  # a worker that restarts takes its browsers' connections with it

#: Where workers and switch meet. A reload reads this file once more, and must not move.
if "FANOUT" not in os.environ:
    os.environ["FANOUT"] = f"ipc://{tempfile.mkdtemp(prefix='fanout-')}"
meeting = os.environ["FANOUT"]


def on_starting(server):
    """Start the switch: what workers send to all at /in, those hear who have dialed /out."""
    command = [sys.executable, "-m", "gmultisocket", "switch", f"{meeting}/in", f"{meeting}/out"]
    server.switch = subprocess.Popen(command, stdin=subprocess.DEVNULL)


def on_exit(server):
    """End it, when the workers have gone."""
    server.switch.terminate()
    server.switch.wait()
    shutil.rmtree(meeting.removeprefix("ipc://"))
