"""What the planes of all processes tell each other: who is there, how many subscribers, and whom to disconnect.

Messages are JSON objects under two reserved topics: one for all processes that have a Pub, or have asked something, and
one for each. Each of them says every :data:`BEAT` seconds that it is there, and says goodbye; and to one that has
just come, all others say it at once. So a process that asks knows how many answers to wait for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import count
from time import monotonic
from typing import Any, Final, NamedTuple

import gevent
from gevent import get_hub, getcurrent
from gevent.pool import Group

from .. import usercode
from ..core.pipes.pipe import Pipe
from ..errors import Closed, Disconnected
from ..log import get_logger
from ..loop.ending import end
from ..loop.periodic import Periodic
from ..loop.waiting import Deadline, WaitList
from ..loop.yielding import yield_to_loop
from ..protocol.rights import RemoteSub
from .engine import RESERVED
from .link import Link
from .local import LocalSubscribers, PlanePub

__all__ = ["BEAT", "Control", "PlanePresence"]

logger = get_logger("gmultisocket.backplane")

#: Seconds between two signs of life of a process, and after how many without one it is forgotten.
BEAT: Final = 10.0
_FORGET: Final = 30.0
#: Seconds within which the others have answered one that has just come.
_ROLL_CALL: Final = 0.5
_ALL: Final = f"{RESERVED}all"
#: Pipes that are looked at before others run.
_PORTION: Final = 256


class PlanePresence(NamedTuple):
    """The subscribers of a topic or a pattern, at the Pubs of all processes.

    Attributes:
        subscribers: their number.
        names: their names, sorted, each once; None if no Pub has ``presence_names``.
        complete: whether all processes have answered that are known to be there.
    """

    subscribers: int
    names: tuple[str, ...] | None
    complete: bool


class Control:
    """What one process says to the others, and does when they say something.

    Args:
        link: its link.
        local: its Pubs.
    """

    def __init__(self, link: Link, local: LocalSubscribers) -> None:
        self._link = link
        self._local = local
        self._me = link.origin.hex()
        self._mine = f"{RESERVED}to.{self._me}"
        #: By member: when it was last heard.
        self._members: dict[str, float] = {}
        self._listens = self._closed = False
        #: When the engine began to serve the two topics; None: not yet.
        self._since: float | None = None
        #: The greenlets that act on messages, and the one that sends the first.
        self._greenlets = Group()
        #: By question: the answers so far, by member: the number of subscribers, and their names.
        self._questions: dict[int, dict[str, tuple[int, list[str] | None]]] = {}
        self._numbers = count(1)
        self._answered = WaitList(get_hub(), lambda: True)
        self._beats = Periodic(lambda: BEAT, self._beat)
        link.on_control = self._receive

    def listen(self) -> None:
        """Begin to send and receive control messages. Does not block; may be repeated."""
        if not self._listens:
            self._listens = True
            self._link.want(_ALL)
            self._link.want(self._mine)
            self._greenlets.spawn(self._greet)

    def _greet(self) -> None:
        """Send the first message as soon as the answers can arrive (a greenlet)."""
        for pattern in (_ALL, self._mine):
            if not self._link.wait_served(pattern, Deadline(None)):
                return
        self._since = monotonic()
        self._beat(0.0, 0.0)
        self._beats.start()
        gevent.sleep(_ROLL_CALL)
        self._answered.wake_all()

    def close(self) -> None:
        """Stop, and tell the others. Those who wait for answers get Closed. Does not block."""
        self._closed = True
        for greenlet in [*self._greenlets]:
            end(greenlet)
        self._answered.wake_all()
        if self._listens:
            self._beats.stop()
            if self._since is not None:
                self._say(_ALL, {"do": "bye"})

    def join(self) -> None:
        """Block until the greenlets of the closed object have ended, except the caller."""
        self._beats.join()
        for greenlet in [*self._greenlets]:
            if greenlet is not getcurrent():
                greenlet.join()

    def _beat(self, elapsed: float, late: float) -> None:
        self._say(_ALL, {"do": "here"})
        oldest = monotonic() - _FORGET
        for member in [each for each, heard in self._members.items() if heard < oldest]:
            del self._members[member]

    def _say(self, topic: str, message: dict[str, Any]) -> None:
        content = json.dumps({"from": self._me, **message}).encode()
        self._link.publish(self._link.engine.head(topic), content)

    # Presence

    def presence(self, pattern: str, timeout: float) -> PlanePresence:
        """Ask all processes how many subscribers they have. Blocks until all have answered, or the time is up.

        Raises:
            Closed: the plane was closed meanwhile.
        """
        deadline = Deadline(timeout)
        self.listen()
        self._wait_until(self._knows_all, deadline)
        number = next(self._numbers)
        answers = self._questions[number] = {}
        try:
            self._say(_ALL, {"do": "count", "id": number, "pattern": pattern})
            answers[self._me] = self._count(pattern)
            self._wait_until(lambda: self._has_all(answers), deadline)
        finally:
            del self._questions[number]
        found = [names for _, names in answers.values() if names is not None]
        return PlanePresence(
            sum(number for number, _ in answers.values()),
            tuple(sorted({name for names in found for name in names})) if found else None,
            self._link.is_up and self._has_all(answers),
        )

    def _wait_until(self, condition: Callable[[], bool], deadline: Deadline) -> None:
        """Block until something has come that makes a condition true, or the time is up. Raises as presence does."""
        while not condition() and self._answered.wait(deadline.left()):
            if self._closed:
                raise Closed("backplane")

    def _has_all(self, answers: Mapping[str, object]) -> bool:
        """Return whether all others are known, and have answered."""
        return self._knows_all() and self._members.keys() <= answers.keys()

    def _knows_all(self) -> bool:
        """Return whether it knows all others."""
        return self._since is not None and monotonic() - self._since >= _ROLL_CALL

    def _count(self, pattern: str) -> tuple[int, list[str] | None]:
        """Return the number of subscribers of this process, and their names."""
        number = 0
        found: list[str] | None = None
        for pub in self._local.pubs:
            presence = pub.presence(pattern)
            number += presence.subscribers
            if presence.names is not None:
                found = [*(found or ()), *presence.names]
        return number, found

    # Peers of all processes

    def revoke(self, identity: Mapping[str, Any], pattern: str, reason: str) -> None:
        """End a pattern's subscriptions by all peers with an identity, at the Pubs of all processes.

        Raises:
            ValueError, TypeError: the identity is empty, or JSON cannot hold it.
        """
        self._do({"do": "revoke", "identity": _checked(identity), "pattern": pattern, "reason": reason})

    def disconnect(self, identity: Mapping[str, Any], reason: str, code: int | None) -> None:
        """Close the connections of all peers with an identity, at the Pubs of all processes.

        Raises:
            ValueError, TypeError: as :meth:`revoke`, or it is no code of an application.
        """
        self._do({"do": "disconnect", "identity": _checked(identity), "reason": reason, "code": code})

    def _do(self, message: dict[str, Any]) -> None:
        apply = self._action(message)
        self._say(_ALL, message)
        self._greenlets.spawn(self._for_each, message["identity"], apply)

    @staticmethod
    def _action(message: Mapping[str, Any]) -> Callable[[PlanePub, Pipe], object]:
        """Return what a message to revoke or to disconnect does with a pipe.

        Raises:
            ValueError, KeyError, TypeError: it makes no sense.
        """
        reason = str(message["reason"])
        if message["do"] == "revoke":
            pattern = str(message["pattern"])
            return lambda pub, pipe: pub.revoke(RemoteSub(pipe, pipe.path), pattern, reason)
        code = message["code"]
        error = reason if code is None else Disconnected(code, reason)
        return lambda pub, pipe: pipe.carrier.close(error)

    def _for_each(self, wanted: Mapping[str, Any], apply: Callable[[PlanePub, Pipe], object]) -> None:
        """Revoke or disconnect here (a greenlet for each)."""
        for number, (pub, pipe) in enumerate(self._local.pipes(), 1):
            if number % _PORTION == 0:
                yield_to_loop()
            identity = pipe.identity
            if not pipe.closed and all(key in identity and identity[key] == value for key, value in wanted.items()):
                apply(pub, pipe)

    # What comes

    def _receive(self, content: bytes) -> None:
        """Act on a message of another process."""
        try:
            message = json.loads(content)
            sender, what = str(message["from"]), message["do"]
            if what == "bye":
                self._members.pop(sender, None)
                self._answered.wake_all()
                return
            if sender not in self._members and what == "here":
                # It has just come. Without this it would hear of this process with the next beat only.
                self._say(f"{RESERVED}to.{sender}", {"do": "here too"})
            self._members[sender] = monotonic()
            if what == "count":
                self._greenlets.spawn(self._answer, sender, message["id"], str(message["pattern"]))
            elif what == "answer":
                answers = self._questions.get(message["id"])
                if answers is not None:
                    answers[sender] = int(message["number"]), message["names"]
                    self._answered.wake_all()
            elif what in ("revoke", "disconnect"):
                self._greenlets.spawn(self._for_each, {**message["identity"]}, self._action(message))
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("a control message of another plane makes no sense: %s", error)

    def _answer(self, sender: str, number: object, pattern: str) -> None:
        """Count, and say so (a greenlet for each question: counting may block)."""
        try:
            subscribers, names = self._count(pattern)
        except (Exception, gevent.Timeout) as error:
            usercode.report(logger.name, "the presence_names of a Pub failed", error, self)
            return
        self._say(f"{RESERVED}to.{sender}", {"do": "answer", "id": number, "number": subscribers, "names": names})


def _checked(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity that may be sent.

    Raises:
        ValueError, TypeError: it is empty and would match everybody, or JSON cannot hold it.
    """
    if not identity:
        raise ValueError("an identity has at least one entry, like {'user': 'ann'}: an empty one would be everybody's")
    json.dumps(dict(identity))
    return dict(identity)
