"""The application of a worker: a page, and WebSockets that are subscribed to what any worker is told."""

import os
from pathlib import Path

from gmultisocket import Backplane
from gmultisocket.contrib.wsgi import mount

plane = Backplane(os.environ["PLANE"])
PAGE = Path(__file__).with_name("page.html").read_bytes()


def pages(environ, start_response):
    if environ["REQUEST_METHOD"] == "POST":
        plane.publish("said", b"worker %d: %b" % (os.getpid(), environ["wsgi.input"].read()))
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(PAGE)))])
    return [PAGE]


application = mount(plane.pub, "/ws", pages)
