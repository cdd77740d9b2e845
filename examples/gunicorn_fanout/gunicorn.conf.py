"""Two gevent workers, and the switch that joins them; see README.rst."""

import os
import shutil
import subprocess
import sys
import tempfile
from threading import Event, Thread

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


def start_switch(server):
    """Start the switch: it forwards what workers send to /in to all workers that have dialed /out."""
    command = [sys.executable, "-m", "gmultisocket", "switch", f"{meeting}/in", f"{meeting}/out"]
    # In a session of its own: Ctrl-C is for gunicorn, which ends the switch after the workers.
    server.switch = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)


def keep_switch(server):
    """Start the switch again when it dies (a thread of the master). The workers dial it again by themselves."""
    while server.switch.wait() is not None and not server.stopping.is_set():
        server.log.error("The switch between the workers has died: it starts again in a second. Messages were lost.")
        if server.stopping.wait(1.0):
            return
        start_switch(server)


def on_starting(server):
    """Start the switch before the workers."""
    server.stopping = Event()
    start_switch(server)
    server.switch_keeper = Thread(target=keep_switch, args=(server,), daemon=True)
    server.switch_keeper.start()


def on_exit(server):
    """End the switch, after the workers have ended."""
    server.stopping.set()
    while server.switch_keeper.is_alive():
        server.switch.terminate()
        server.switch_keeper.join(1.0)
    shutil.rmtree(meeting.removeprefix("ipc://"))
