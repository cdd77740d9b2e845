"""The hub: passes publications on between the processes of one or several hosts, to those that want them.

It is a process of its own, ``gmultisocket hub ADDRESS``, and a Pub to its clients. It keeps the present values of
topics, and the history of those that it is told, in its memory. A client that does not read is cut off when its queue
is full, and connects again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Final, Literal

import gevent
from gevent import Greenlet

from .. import options as opts
from ..core.connecting.listener import Listener
from ..core.pipes.pipe import Pipe
from ..errors import BadTopic, Closed
from ..log import ThrottledLog, get_logger
from ..loop.ending import LOG_INTERVAL, survive
from ..loop.yielding import yield_to_loop
from ..options import OptionValues
from ..protocol.history import Kept, publication
from ..protocol.pubsub import Pub
from ..protocol.pubsubwire import Malformed, is_control
from ..protocol.rights import RemoteSub
from ..protocol.subscriptions import is_literal
from ..protocol.upstream import control
from ..wire import CONTROL, SEND_TYPE_MASK, Message
from . import hubwire
from .hubhistory import HubHistory
from .hublock import HubLock
from .hubrelay import HubRelay
from .once import Once

__all__ = ["HubServer"]

_log = ThrottledLog(get_logger("gmultisocket.backplane"), LOG_INTERVAL)

#: Topics that are compared with a pattern before others run.
_PORTION: Final = 256
#: Seconds between two looks at the files of the hub, and at the number of its clients.
_LOOK: Final = 1.0


class HubServer(Pub):
    """A hub.

    Args:
        options: of its socket. The defaults cut a client off that has 8 MiB or 65,535 messages in its queue, and
            refuse contents of more than 1 MiB.
        history: patterns of the topics whose publications are kept: at most 10,000 of them, and 16 MiB.

    Raises:
        BadTopic: a pattern of the history is not one.
    """

    defaults = {
        "socket.send_overflow": "disconnect",
        "socket.send_queue_size": 65_535,
        "socket.send_queue_bytes": 8 << 20,
        "socket.recv_queue_size": 1024,
        "socket.max_send_content_length": 0,
        "connector.pipe.max_recv_content_length": (1 << 20) + hubwire.OVERHEAD,
        "connector.pipe.heartbeat_interval": 5.0,
        "protocol.pubsub.max_patterns": 1 << 20,
        "protocol.pubsub.max_pattern_memory": 1 << 30,
        "protocol.pubsub.max_pattern_length": 65_535,
    }

    def __init__(self, options: OptionValues | None = None, *, history: Sequence[str] = ()) -> None:
        super().__init__(options)
        self._loop = gevent.get_hub().loop
        #: By pipe: publications that were passed on in this turn of the loop.
        self._unconfirmed: Counter[Pipe] = Counter()
        self._last_client = monotonic()
        self._history = HubHistory(history)
        self._logs = bool(history)
        #: Of each origin, the newest of what is kept.
        self._newest = Once(b"")
        #: The clients that get positions.
        self._counting: set[Pipe] = set()
        self.hold_acknowledgements(self._send_kept_first)
        #: Publications that came, and copies of them that left.
        self.taken = 0
        self.passed_on = 0
        self._relay = self._core.relay_by(
            # A hub has no authorize, so these groups are pipes.
            partial(
                HubRelay,
                groups=self._groups,
                find=self._find,
                is_kept=self._is_logged,
                send_group=self._send_group,
                count=self._passed,
            )
        )
        self._forwarder: Greenlet[..., Any] = self._spawn(self._forward_all)

    def serve(self, address: str, *, idle: float | None = None, until: Greenlet[..., Any] | None = None) -> str:
        """Listen at an address, and pass on until there is a reason to end. Blocks.

        Args:
            address: for ``ipc``, a hub holds the lock of its path, and ends when its socket file is not its own any
                more.
            idle: end after so many seconds without a client.
            until: end when this greenlet has ended.

        Returns:
            Why it has ended.

        Raises:
            AddressInUse: another hub has the address.
            ConnectionFailed: it cannot listen there.
        """
        with HubLock(address) as lock:
            listener = self.listen(address)
            lock.made()
            self._listening(listener)
            while True:
                gevent.wait([self._forwarder, *([until] if until else [])], timeout=_LOOK, count=1)
                if self._forwarder.ready():
                    return "it was closed"
                if until is not None and until.ready():
                    return "its input has ended"
                if not lock.is_mine():
                    return "its socket file was removed or replaced"
                if self.pipes:
                    self._last_client = monotonic()
                elif idle is not None and monotonic() - self._last_client >= idle:
                    return f"it had no client for {idle:g} s"

    def _listening(self, listener: Listener) -> None:
        """Called when the hub listens. To override."""

    def _on_pipe(self, kind: Literal["add", "remove"], pipe: Pipe) -> None:
        super()._on_pipe(kind, pipe)
        if kind == "remove":
            self._last_client = monotonic()
            self._relay.forget()
            self._unconfirmed.pop(pipe, None)
            self._counting.discard(pipe)

    def _on_message(self, message: Message) -> bool:
        if not message.flags & ~SEND_TYPE_MASK:
            return False
        kind = message.content[:1]
        if kind in (hubwire.RETAIN, hubwire.UNRETAIN) and is_control(message):
            return False
        if kind not in (hubwire.HELLO, hubwire.SYNC):
            return super()._on_message(message)
        pipe = self.pipes.get(message.pipe_id)
        if pipe is not None:
            if kind == hubwire.HELLO:
                self._on_hello(pipe, message.content)
            else:
                self._on_sync(pipe)
        return True

    def _on_hello(self, pipe: Pipe, content: bytes) -> None:
        if content[2:] == b"\1":
            self._counting.add(pipe)
            history = self._history
            head = hubwire.history_head.pack(hubwire.HISTORY, history.epoch, history.last_offset)
            patterns = [publication(pattern, b"") for pattern in sorted(history.topics.patterns)]
            self._outbox.post(pipe, hubwire.HISTORY, control(b"".join((head, *patterns))))
        limit = self.options.get(opts.connector.pipe.max_recv_content_length)
        self._outbox.post(pipe, hubwire.HELLO, control(hubwire.welcome.pack(hubwire.WELCOME, hubwire.VERSION, limit)))

    def _on_sync(self, pipe: Pipe) -> None:
        self._outbox.post(pipe, hubwire.SYNC, control(hubwire.sync.pack(hubwire.SYNC, self._history.last_offset)))

    # Passing on

    def _forward_all(self) -> None:
        """Pass on what takes the long way (one greenlet)."""
        while True:
            self._relay.end()
            try:
                message = self.socket.recv_msg()
            except Closed:
                return
            self._relay.begin(message.pipe_id)
            try:
                self._forward(message)
            except Exception as error:
                survive(_log, "forward", error, "a publication could not be passed on")

    def _forward(self, message: Message) -> None:
        content = message.content
        kind = content[:1] if message.flags & ~SEND_TYPE_MASK else b""
        try:
            topic, stamped = hubwire.split(content, len(kind))
            # A hub has no authorize, so these are pipes.
            wanted: Any = (self._groups.get(topic) or self._find(topic))[1]
        except (Malformed, BadTopic):
            self._drop(message, "garbage")
            return
        sender = self.pipes.get(message.pipe_id)
        targets = [*wanted]
        copies = 0
        if kind or self._is_logged(topic):
            if not self._newest.is_new(*hubwire.stamp.unpack_from(stamped)):
                # The network has held it back until its client had connected again, and published more.
                self._drop(message, "late")
                self._passed(sender, 1, 0)
                return
            entry = self._keep(kind, topic, stamped)
            if entry is not None and self._counting:
                counting = [pipe for pipe in targets if pipe in self._counting]
                targets = [pipe for pipe in targets if pipe not in self._counting]
                positioned = self._positioned(entry, hubwire.IS_RETAINED if kind else 0)
                copies = self._send_group(counting, positioned, CONTROL)
        if not kind and sender in targets:
            targets.remove(sender)
        copies += self._send_group(targets, content, message.flags & CONTROL)
        self._passed(sender, 1, copies)

    def _send_group(self, pipes: Collection[Pipe], content: bytes, flags: int = 0) -> int:
        """Send to clients, and return how many got it. ``socket.send_overflow`` says what happens to full ones."""
        with suppress(Closed):
            return self._core.send_group(pipes, content, flags=flags)
        return 0

    def _passed(self, sender: Pipe | None, taken: int, copies: int) -> None:
        """Count publications of a client, and confirm them soon."""
        self.taken += taken
        self.passed_on += copies
        if sender is not None:
            if not self._unconfirmed:
                self._loop.run_callback(self._turn_ended)
            self._unconfirmed[sender] += taken

    # What is kept

    def _is_logged(self, topic: str) -> bool:
        """Return whether all publications of a topic are kept."""
        return self._logs and topic in self._history.topics

    def _keep(self, kind: bytes, topic: str, stamped: bytes) -> Kept | None:
        """Keep a publication if it is to be kept. Return it with its position; None if it has none.

        Args:
            kind: of the message, b"" for an ordinary publication.
            topic: its topic.
            stamped: what comes behind the topic.
        """
        history = self._history
        if kind == hubwire.UNRETAIN:
            history.unretain(topic)
            return None
        if kind == hubwire.RETAIN:
            return self._keeper._retain(history, topic, stamped)
        return history.append(topic, stamped)

    def _positioned(self, entry: Kept, flags: int) -> bytes:
        """Return a publication with its position."""
        offset, previous, topic, stamped = entry
        flags |= hubwire.LOGGED if topic in self._history.topics else 0
        return hubwire.entry_head.pack(hubwire.ENTRY, flags, offset, previous) + publication(topic, stamped)

    def _send_kept_first(self, subscriber: RemoteSub, pattern: str, release: Callable[[], None]) -> bool:
        """Delay an acknowledgement until what is kept and matches was sent. Return whether it is delayed."""
        pipe = subscriber.pipe
        if pipe in self._counting:
            self._spawn(self._send_history, pipe, pattern, self._history.last_offset, release)
            return True
        if not self._history.last_offset or (is_literal(pattern) and not self._history.retained(pattern)):
            return False
        self._spawn(self._send_values, pipe, pattern, release)
        return True

    def _send_values(self, pipe: Pipe, pattern: str, release: Callable[[], None]) -> None:
        """Send the values for a new subscription (a greenlet for each)."""
        for number, value in enumerate(self._history.values(pattern), 1):
            if number % _PORTION == 0:
                yield_to_loop()
            if value is not None:
                if not self._core.wait_writable(pipe):
                    return
                # Only now: it may have changed during the wait.
                for _, _, topic, stamped in self._history.retained(value.topic):
                    self._core.put(pipe, control(hubwire.KEPT + publication(topic, stamped)))
        release()

    def _send_history(self, pipe: Pipe, pattern: str, last_offset: int, release: Callable[[], None]) -> None:
        """Send what is kept for a new subscription (a greenlet for each)."""
        history = self._history
        entries, complete_from = history.fetch(pattern)
        for number, entry in enumerate(entries, 1):
            if number % _PORTION == 0:
                yield_to_loop()
            if not self._core.wait_writable(pipe):
                return
            # Only now: a value may have ended during the wait.
            is_retained = history.is_retained(entry)
            if is_retained or entry.topic in history.topics:
                flags = hubwire.FETCHED | hubwire.IS_RETAINED * is_retained
                self._core.put(pipe, control(self._positioned(entry, flags)))
        if self._core.wait_writable(pipe):
            head = hubwire.history_head.pack(hubwire.SINCE, complete_from, last_offset)
            self._core.put(pipe, control(head + pattern.encode()))
            release()

    # Confirmations

    def _turn_ended(self) -> None:
        """Schedule the confirmations for what was passed on in this turn. Called in the event loop's hub."""
        counts, self._unconfirmed = self._unconfirmed, Counter()
        # First, what is queued now for clients that read is written, which may take more than one turn.
        self._core.when_written(partial(self._confirm, counts))

    def _confirm(self, counts: Counter[Pipe]) -> None:
        for pipe, count in counts.items():
            if not pipe.closed:
                self._core.put(pipe, control(hubwire.confirm.pack(hubwire.CONFIRM, count)))
