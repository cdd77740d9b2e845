"""The application of a worker: a page, and WebSockets whose messages go to the browsers of every worker."""

import os
from contextlib import suppress
from pathlib import Path

import gevent

from gmultisocket import Socket
from gmultisocket.contrib.wsgi import mount
from gmultisocket.errors import BrokenPath

MEETING = os.environ["FANOUT"]
HERE = b"worker %d" % os.getpid()
PAGE = Path(__file__).with_name("page.html").read_bytes()


def page(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(PAGE)))])
    return [PAGE]


def make_browsers():
    """Make the sockets of this worker. mount() calls this at the first request for a WebSocket, after the fork."""
    # A slow browser loses its oldest messages, and does not block the others.
    browsers = Socket({"socket.send_overflow": "drop_oldest"})
    publish, subscribe = Socket({"socket.no_recv": True}), Socket({"socket.no_send": True})
    for sock, side in ((publish, "in"), (subscribe, "out")):
        # In the background: the switch may not have started yet. A restarted switch is dialed again.
        sock.dial(f"{MEETING}/{side}", {"connector.dialer.dial_async": True})
        sock.wait_pipes(1, timeout=10)
    browsers.on_pipe(lambda event: greet(browsers, event))
    gevent.spawn(up, browsers, publish)
    gevent.spawn(down, subscribe, browsers)
    return browsers


def greet(browsers, event):
    if event.kind == "add":
        with suppress(BrokenPath):  # the browser has disconnected
            browsers.send_to(event.pipe.path, b"this is " + HERE)


def up(browsers, publish):
    """Send the messages of this worker's browsers to all workers, this one included."""
    for message in browsers:
        publish.send_all(b"%b: %b" % (HERE, message.content))


def down(subscribe, browsers):
    """Send the messages of all workers to the browsers of this worker."""
    for message in subscribe:
        browsers.send_all(message.content)


application = mount(make_browsers, "/ws", page)
