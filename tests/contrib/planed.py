"""An application of gunicorn workers with a backplane, for tests. It is a configuration of gunicorn as well."""

import json
import os

from gmultisocket import Backplane
from gmultisocket.contrib.gunicorn import hub_hooks, post_worker_init, worker_int
from gmultisocket.contrib.wsgi import mount

hooks = [post_worker_init, worker_int]
worker_class = "gevent"
workers = 2
worker_connections = 1000
wsgi_app = "tests.contrib.planed:application"
history = ["log"]
if os.environ["PLANE"].startswith("ipc:"):
    on_starting, on_exit = hub_hooks(os.environ["PLANE"], history)

plane = Backplane(os.environ["PLANE"], history=history)
pubs = []


def make_pub():
    """Make the Pub of this worker, at its first WebSocket."""
    pubs.append(plane.pub())
    return pubs[0]


def pages(environ, start_response):
    """Publish what is posted, and say how it is."""
    if environ["REQUEST_METHOD"] == "POST":
        plane.publish(environ["PATH_INFO"].strip("/") or "said", environ["wsgi.input"].read())
    state = {
        "pid": os.getpid(),
        "patterns": plane.patterns,
        "subscriptions": sum(pub.subscriptions for pub in pubs),
        "healthy": plane.healthy,
        "counters": {**plane.counters._asdict(), "dropped": sum(plane.counters.dropped.values())},
    }
    body = json.dumps(state).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


application = mount(make_pub, "/ws", pages)
