"""A chat with rooms: what is said goes to everybody in the room, and each page sees who is there."""

import json
import re
import time
from collections import defaultdict, deque
from pathlib import Path
from urllib.parse import parse_qs

import gevent

from gmultisocket import Pub, Rep, Session
from gmultisocket.contrib.wsgi import mount
from gmultisocket.errors import RequestRefused

PAGE = Path(__file__).with_name("page.html").read_bytes()
ROOMS = ("lobby", "garden", "workshop")
NAME = re.compile(r"[\w ]{1,24}")


def page(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(PAGE)))])
    return [PAGE]


def who(upgrade):
    """Take the name that the page gives. A real application would have a login: see examples/dashboard."""
    name = parse_qs(upgrade.query).get("name", [""])[0].strip()
    if not NAME.fullmatch(name):
        raise RequestRefused(403, "a name has at most 24 letters, digits and spaces")
    return {"user": name}


def may_subscribe(subscriber, pattern):
    return pattern in [f"rooms.{room}.{what}" for room in ROOMS for what in ("said", "present")]


class Chat:
    """The rooms of this worker."""

    def __init__(self):
        self.pub = Pub(authorize=may_subscribe, presence_names=lambda subscriber: subscriber.identity["user"])
        self.rep = Rep()
        self.said = defaultdict(lambda: deque(maxlen=50))
        gevent.spawn(self.answer)
        gevent.spawn(self.watch)

    def answer(self):
        """Take what is said, and tell newcomers what was said before."""
        for request in self.rep:
            try:
                asked = json.loads(request.content)
                room, text = asked["room"], asked.get("text")
                if room not in ROOMS or request.identity is None:
                    request.fail("there is no such room")
                elif text is None:
                    request.reply(json.dumps([*self.said[room]]).encode())
                elif not 0 < len(str(text).strip()) <= 1000:
                    request.fail("between 1 and 1000 characters, please")
                else:
                    self.say(room, request.identity["user"], str(text).strip())
                    request.reply(b"null")
            except (ValueError, KeyError, TypeError, AttributeError):
                request.fail("that is no request")

    def say(self, room, name, text):
        line = {"name": name, "text": text, "time": time.time()}
        self.said[room].append(line)
        self.pub.publish(f"rooms.{room}.said", json.dumps(line).encode())

    def watch(self):
        """Say who is in a room when that has changed. It is retained: newcomers see it at once."""
        present = {}
        while True:
            for room in ROOMS:
                names = self.pub.presence(f"rooms.{room}.said").names
                if present.get(room) != names:
                    present[room] = names
                    self.pub.publish(f"rooms.{room}.present", json.dumps(names).encode(), retain=True)
            gevent.sleep(0.5)


def make_session():
    """Make what the WebSockets of this worker share. mount() calls it at the first one, after the fork."""
    chat = Chat()
    return Session({"rooms": chat.pub, "say": chat.rep})


application = mount(make_session, "/ws", page, {"transport.ws.listener.authorize": who})
