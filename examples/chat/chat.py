"""A chat with rooms: everybody in a room gets its lines, and sees who is there."""

import json
import os
import re
import time
from collections import defaultdict
from pathlib import Path
from urllib.parse import parse_qs

import gevent

from gmultisocket import Backplane, Rep, Session
from gmultisocket.contrib.wsgi import mount
from gmultisocket.errors import RequestRefused

PAGE = Path(__file__).with_name("page.html").read_bytes()
ROOMS = ("lobby", "garden", "workshop")
NAME = re.compile(r"[\w ]{1,24}")
#: A room remembers so many lines.
LINES = 50

plane = Backplane(os.environ["PLANE"])


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
    return pattern in [f"rooms.{room}.{what}" for room in ROOMS for what in ("said.*", "present")]


class Chat:
    """The rooms, as this worker sees them.

    The lines of a room have 50 topics, in turn: rooms.lobby.said.0 to rooms.lobby.said.49. The backplane keeps the last
    value of each, so a new subscriber to rooms.lobby.said.* gets the last 50 lines, and then each further one.
    """

    def __init__(self):
        self.pub = plane.pub(
            authorize=may_subscribe, presence_names=lambda subscriber: subscriber.identity["user"]
        )
        self.rep = Rep()
        #: By room: the number of the last line, and who is there.
        self.last = defaultdict(lambda: -1)
        self.present = {}
        published = plane.subscribe("rooms.>", timeout=10)
        # The values that the backplane has kept: after a reload, all of them.
        while published.waiting:
            self.learn(*published.recv())
        gevent.spawn(self.listen, published)
        gevent.spawn(self.answer)
        gevent.spawn(self.watch)

    def listen(self, published):
        for topic, content in published:
            self.learn(topic, content)

    def learn(self, topic, content):
        """Remember a value that any worker, this one included, has published."""
        value, room = json.loads(content), topic.split(".")[1]
        if topic.endswith(".present"):
            self.present[room] = value
        else:
            self.last[room] = max(self.last[room], value["number"])

    def answer(self):
        """Answer the requests of the pages: publish their lines."""
        for request in self.rep:
            try:
                asked = json.loads(request.content)
                room, text = asked["room"], asked["text"].strip()
            except (ValueError, KeyError, TypeError, AttributeError):
                request.fail("that is no request")
                continue
            if room not in ROOMS or request.identity is None:
                request.fail("there is no such room")
            elif not 0 < len(text) <= 1000:
                request.fail("between 1 and 1000 characters, please")
            else:
                self.say(room, request.identity["user"], text)
                request.reply(b"null")

    def say(self, room, name, text):
        # If another worker takes the same number at the same moment, pages show both lines, and one is kept.
        number = self.last[room] = self.last[room] + 1
        line = {"number": number, "name": name, "text": text, "time": time.time()}
        plane.publish(f"rooms.{room}.said.{number % LINES}", json.dumps(line).encode(), retain=True)

    def watch(self):
        """Publish the names in a room, of all workers, when they change."""
        while True:
            for room in ROOMS:
                found = plane.presence(f"rooms.{room}.said.*")
                if found.complete and self.present.get(room) != [*(found.names or ())]:
                    plane.publish(f"rooms.{room}.present", json.dumps(found.names or ()).encode(), retain=True)
            gevent.sleep(0.5)


def make_session():
    """Make the Session that the WebSockets of this worker share. mount() calls it at the first one, after the fork."""
    chat = Chat()
    return Session({"rooms": chat.pub, "say": chat.rep})


application = mount(make_session, "/ws", page, {"transport.ws.listener.authorize": who})
