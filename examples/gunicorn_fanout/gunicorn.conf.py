"""Two gevent workers, and the switch that joins them; see README.rst."""

import os
import shutil
import subprocess
import sys
import tempfile

from gmultisocket.contrib.gunicorn import post_worker_init, worker_int

#: The hooks close the WebSockets of a worker that stops. gunicorn finds them by their names.
hooks = [post_worker_init, worker_int]

bind = "127.0.0.1:8000"
chdir = os.path.dirname(os.path.abspath(__file__))
wsgi_app = "fanout:application"
worker_class = "gevent"
workers = 2
worker_connections = 10_000  # browsers for each worker
max_requests = 0  # a worker that restarts takes its browsers' connections with it

#: The address of the switch. A reload reads this file again, and must keep the address.
if "FANOUT" not in os.environ:
    os.environ["FANOUT"] = f"ipc://{tempfile.mkdtemp(prefix='fanout-')}"
meeting = os.environ["FANOUT"]


def on_starting(server):
    """Start the switch: it forwards what workers send to /in to all workers that have dialed /out."""
    command = [sys.executable, "-m", "gmultisocket", "switch", f"{meeting}/in", f"{meeting}/out"]
    server.switch = subprocess.Popen(command, stdin=subprocess.DEVNULL)


def on_exit(server):
    """End the switch, after the workers have ended."""
    server.switch.terminate()
    server.switch.wait()
    shutil.rmtree(meeting.removeprefix("ipc://"))
