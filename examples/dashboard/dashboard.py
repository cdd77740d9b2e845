"""Live values in a Flask application: each user sees his own greenhouse, and sets its temperature."""

import fcntl
import json
import os
import random

import gevent
from flask import Flask, redirect, render_template, request, session

from gmultisocket import Backplane, Rep, Session
from gmultisocket.contrib.wsgi import mount
from gmultisocket.errors import RequestRefused

app = Flask(__name__)
app.secret_key = os.environ.get("DASHBOARD_SECRET", "only for trying it out")
plane = Backplane(os.environ["PLANE"])


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
    """Return the user of a WebSocket. It is logged in by the same cookie as the pages."""
    user = app.session_interface.open_session(app, app.request_class(upgrade.environ)).get("user")
    if user is None:
        raise RequestRefused(401, "log in first")
    return {"user": user}


def may_subscribe(subscriber, pattern):
    """Allow the weather to all, and to each user his own topics. Compare patterns, never topics."""
    return pattern == "weather" or pattern.startswith(f"users.{subscriber.identity['user']}.") or "not yours"


# The greenhouses


class Greenhouses:
    """A greenhouse for each user. All workers know them. The worker that holds a lock computes their next state."""

    def __init__(self):
        #: By user.
        self.houses = {}
        self.targets = {}
        self.outside = 12.0
        published = plane.subscribe("users.*.*", timeout=10)
        # The values that the backplane has kept: after a reload, all of them.
        while published.waiting:
            self.learn(*published.recv())
        gevent.spawn(self.listen, published)
        gevent.spawn(self.run)

    def listen(self, published):
        for topic, content in published:
            self.learn(topic, content)

    def learn(self, topic, content):
        """Remember a value that any worker, this one included, has published."""
        _, user, what = topic.split(".")
        {"greenhouse": self.houses, "target": self.targets}[what][user] = json.loads(content)

    def wanted(self, pattern, wanted):
        """Build the greenhouse of a user who looks at it for the first time."""
        user = pattern.split(".")[1] if pattern.startswith("users.") else ""
        if wanted and user and user not in self.targets:
            publish(f"users.{user}.target", 21.0)

    def run(self):
        """Wait until this worker has the lock, then publish the weather and all greenhouses once a second."""
        with open(os.environ["DASHBOARD_LOCK"], "w") as lock:
            while not is_mine(lock):
                gevent.sleep(1)
            while True:
                self.outside = min(30.0, max(-5.0, self.outside + random.uniform(-0.3, 0.3)))
                publish("weather", {"temperature": self.outside})
                for user, target in [*self.targets.items()]:
                    house = self.houses.get(user) or {"temperature": 18.0, "humidity": 60.0}
                    publish(f"users.{user}.greenhouse", self.after_a_second(house, target))
                gevent.sleep(1)

    def after_a_second(self, house, target):
        heating = max(0.0, min(1.0, (target - house["temperature"]) / 3))
        temperature = house["temperature"] + heating * 0.8 + (self.outside - house["temperature"]) / 60
        humidity = min(95.0, max(20.0, house["humidity"] + random.uniform(-1, 1)))
        return {"temperature": temperature, "humidity": humidity, "heating": heating}


def is_mine(lock):
    """Take the lock if no other worker has it. It becomes free when its worker ends, also if that is killed."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def publish(topic, value):
    plane.publish(topic, json.dumps(value).encode(), retain=True)


def serve(rep):
    """Set targets. A request names the user; the identity of its peer decides whether that is allowed."""
    for asked in rep:
        try:
            wanted = json.loads(asked.content)
            user, target = wanted["user"], float(wanted["target"])
        except (ValueError, KeyError, TypeError):
            asked.fail("that is no request")
            continue
        if asked.identity is None or user != asked.identity["user"]:
            asked.fail("not yours")
        elif not 5 <= target <= 35:
            asked.fail("between 5 and 35 degrees, please")
        else:
            publish(f"users.{user}.target", target)
            asked.reply(json.dumps(target).encode())


def make_session():
    """Make the Session that the WebSockets of this worker share. mount() calls it at the first one, after the fork."""
    pub, rep = plane.pub(authorize=may_subscribe), Rep()
    pub.on_interest(Greenhouses().wanted)
    gevent.spawn(serve, rep)
    return Session({"events": pub, "control": rep})


application = mount(make_session, "/ws", app, {"transport.ws.listener.authorize": who})
