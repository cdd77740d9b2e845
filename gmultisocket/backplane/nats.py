"""The engine for NATS: ``nats://user:password@a:4222,b:4222``, ``nats://token@a``, ``nats+tls://a``.

A topic is the subject ``plane.prefix`` + topic, and the content of a message is a publication's content: programs in
any language can take part with a NATS client. What is lost when: a publication that the server has confirmed reaches
every process that has a subscription there. A subscriber that the server finds too slow is disconnected. The present
values of topics, and their history, need JetStream.

The protocol is in ``natswire.py``, a connection in ``natslink.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Final

from .. import options as opts
from ..errors import Closed, EngineRefused, MultiSocketError
from ..options import Options
from ..transport.base import StreamConnection
from .brokerengine import BrokerEngine, BrokerLink
from .brokerline import Opener
from .brokerurl import Server
from .engine import Plane
from .jetstream import StreamNames
from .natshistory import REPLY, LoggedTopics
from .natslink import NatsLink, log_in
from .natswire import HEADER_SIZE, Info, Parser, Subjects, encode_head

__all__ = ["NatsEngine"]

_NO_PREFIX: Final = "at NATS, it needs a plane.prefix"
_NO_JETSTREAM: Final = "without JetStream: start it with -js, or with jetstream {} in its configuration"


class NatsEngine(BrokerEngine):
    """Publishes and subscribes at one of several servers of NATS, which form a cluster."""

    ports: ClassVar[Mapping[str, int | None]] = {"nats": 4222, "nats+tls": 4222}

    def __init__(self, url: str, plane: Plane, options: Options) -> None:
        super().__init__(url, plane, options)
        prefix = self.options.get(opts.plane.prefix)
        self._subjects = Subjects(prefix)
        #: None without a prefix, and without history.
        self._names = StreamNames(self._subjects, prefix) if prefix else None
        self._logged: LoggedTopics | None = None
        if plane.history and self._names is not None:
            self._logged = LoggedTopics(plane.history, self._subjects, self._names)
        self.no_values = "" if prefix else _NO_PREFIX

    def head(self, topic: str) -> bytes:
        logged = self._logged
        reply = REPLY if logged is not None and topic in logged.topics else b""
        return encode_head(self._subjects.encode(topic), reply)

    def _open(self, server: Server, opener: Opener) -> BrokerLink:
        connection, parser, info = self._log_in(server, opener)
        self.max_content = max(1, info.max_payload - HEADER_SIZE)
        if self._names is not None:
            self.no_values = "" if info.jetstream else f"the NATS server keeps no values {_NO_JETSTREAM}"
        names = None if self.no_values else self._names
        if self.plane.history and names is None:
            connection.close()
            why = f"keeps no history {_NO_JETSTREAM}" if self._names is not None else f"keeps history, and {_NO_PREFIX}"
            raise EngineRefused(server.name, f"the server {why}")
        probe = partial(self._probe, server)
        link = NatsLink(connection, parser, server, probe, self.plane, self._subjects, names, self._logged, self.count)
        try:
            link.begin_history()
        except BaseException as error:
            link.close(error if isinstance(error, MultiSocketError) else Closed("Backplane"))
            link.join()
            raise
        return link

    def _log_in(self, server: Server, opener: Opener) -> tuple[StreamConnection, Parser, Info]:
        return log_in(server, opener, tls=server.scheme == "nats+tls")

    def _probe(self, server: Server) -> None:
        connection, _, _ = self._log_in(server, Opener(self.options))
        connection.close()
