"""Live values in a Flask application: who is logged in sees his own greenhouse, and sets its temperature."""

import json
import os
import random
from contextlib import suppress

import gevent
from flask import Flask, redirect, render_template, request, session

from gmultisocket import Pub, Rep, Session
from gmultisocket.contrib.wsgi import mount
from gmultisocket.errors import RequestRefused

app = Flask(__name__)
app.secret_key = os.environ.get("DASHBOARD_SECRET", "only for trying it out")


# Pages, as in any Flask application


@app.get("/")
def page():
    if "user" not in session:
        return render_template("login.html")
    return render_template("dashboard.html", user=session["user"])


@app.post("/login")
def login():
    # A real application asks for a password.
    name = request.form["name"].strip().lower()
    if name.isalnum():
        session["user"] = name
    return redirect("/")


@app.post("/logout")
def logout():
    session.clear()
    return redirect("/")


# Rights


def who(upgrade):
    """Say who opens a WebSocket: whoever is logged in, by the same cookie as in pages."""
    user = app.session_interface.open_session(app, app.request_class(upgrade.environ)).get("user")
    if user is None:
        raise RequestRefused(401, "log in first")
    return {"user": user}


def may_subscribe(subscriber, pattern):
    """Everybody sees the weather, and each user what is his own. Patterns are compared, never topics."""
    return pattern in ("weather", f"users.{subscriber.identity['user']}.*") or "not yours"


# The greenhouses


class Greenhouses:
    """A greenhouse for each user. What it is like is published once a second, and kept for those who come later."""

    def __init__(self, pub):
        self.pub = pub
        self.houses = {}
        self.outside = 12.0
        # Nobody looks at a greenhouse that has not been asked for.
        pub.on_interest(self.wanted)
        gevent.spawn(self.run)

    def wanted(self, pattern, wanted):
        if wanted and pattern.startswith("users."):
            self.houses.setdefault(pattern.split(".")[1], {"temperature": 18.0, "humidity": 60.0, "target": 21.0})

    def run(self):
        while True:
            self.outside = min(30.0, max(-5.0, self.outside + random.uniform(-0.3, 0.3)))
            self.publish("weather", {"temperature": self.outside})
            for user, house in self.houses.items():
                heating = max(0.0, min(1.0, (house["target"] - house["temperature"]) / 3))
                house["temperature"] += heating * 0.8 + (self.outside - house["temperature"]) / 60
                house["humidity"] = min(95.0, max(20.0, house["humidity"] + random.uniform(-1, 1)))
                self.publish(f"users.{user}.greenhouse", {**house, "heating": heating})
            gevent.sleep(1)

    def publish(self, topic, value):
        self.pub.publish(topic, json.dumps(value).encode(), retain=True)

    def serve(self, rep):
        """Set targets. A request says whose; its peer's identity says whether that is allowed."""
        for asked in rep:
            try:
                wanted = json.loads(asked.content)
                user, target = wanted["user"], float(wanted["target"])
                if asked.identity is None or user != asked.identity["user"]:
                    asked.fail("not yours")
                elif not 5 <= target <= 35:
                    asked.fail("between 5 and 35 degrees, please")
                else:
                    self.houses[user]["target"] = target
                    asked.reply(json.dumps(target).encode())
            except (ValueError, KeyError, TypeError):
                with suppress(Exception):
                    asked.fail("that is no request")


def make_session():
    """Make what the WebSockets of this worker share. mount() calls it at the first one, after the fork."""
    pub, rep = Pub(authorize=may_subscribe), Rep()
    gevent.spawn(Greenhouses(pub).serve, rep)
    return Session({"events": pub, "control": rep})


application = mount(make_session, "/ws", app, {"transport.ws.listener.authorize": who})
