"""The engine for Redis and Valkey: ``redis://user:password@host:6379``, ``rediss://`` with TLS, ``redis+unix:///path``.

A topic is the channel ``plane.prefix`` + topic. The value of a message is a mark of 20 bytes and the content, so a
program that subscribes with another client sees the mark; what such a program publishes comes here as it is. Channels
are one space for all databases of a server.

What is lost when: a publication that the server has confirmed reaches every process that has a subscription there. A
subscriber that the server finds too slow (``client-output-buffer-limit``) is disconnected. The server keeps the present
values of topics, and the publications of topics with history, in its memory.

The commands are in ``rediswire.py``, the connections in ``redislink.py``. Needs hiredis: ``pip install
'gmultisocket[redis]'``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Final

from .. import options as opts
from ..errors import AddressError, Closed, NotSupported
from ..options import Options
from ..transport.base import StreamConnection
from ..transport.tcp import TCPConnection
from .brokerengine import BrokerEngine, BrokerLink
from .brokerline import Opener
from .brokerurl import Server
from .engine import RESERVED, Plane
from .redishistory import HistoryCommands, KnownHistory
from .redisvalues import ValueCommands
from .rediswire import CHANGE_SIZE, Channels

if TYPE_CHECKING:
    from .redislink import RedisLink

__all__ = ["RedisEngine"]

#: The most bytes of a message. A server takes 512 MiB, but unless it is configured it disconnects every subscriber for
#: which 32 MiB wait, or 8 MiB for a minute.
_MAX_MESSAGE: Final = 8 << 20


class RedisEngine(BrokerEngine):
    """Publishes and subscribes at one server of Redis, by two connections."""

    ports: ClassVar[Mapping[str, int | None]] = {
        "redis": 6379, "rediss": 6379, "redis+unix": None, "valkey": 6379, "valkeys": 6379,
    }  # fmt: skip
    database = True
    no_values = ""

    def __init__(self, url: str, plane: Plane, options: Options) -> None:
        super().__init__(url, plane, options)
        try:
            from . import redislink
        except ImportError as error:
            raise NotSupported("Redis", "it needs hiredis: pip install 'gmultisocket[redis]'") from error
        self._redislink = redislink
        if len(self._servers) > 1:
            names = ", ".join(server.name for server in self._servers)
            raise AddressError(names, "a publication at one server of Redis does not reach another one: expected one")
        prefix = self.options.get(opts.plane.prefix)
        self._channels = Channels(prefix)
        self._values = ValueCommands(prefix, plane.origin)
        news = self._channels.encode(RESERVED + "history")
        self._history = HistoryCommands(prefix, plane.origin, news)
        self._known = KnownHistory()
        self.max_content = _MAX_MESSAGE - CHANGE_SIZE

    def head(self, topic: str) -> bytes:
        return self._channels.encode(topic)

    def _open(self, server: Server, opener: Opener) -> BrokerLink:
        first = self._connect(server, opener)
        try:
            second = self._connect(server, opener)
        except BaseException:
            first.close()
            raise
        commands = self._redislink.Commands(self._channels, self._values, self._history)
        link: RedisLink = self._redislink.RedisLink(
            first, second, server, self.plane, commands, self._known, self.count
        )
        try:
            link.begin()
        except BaseException:
            link.close(Closed("connection"))
            link.join()
            raise
        return link

    def _connect(self, server: Server, opener: Opener) -> StreamConnection:
        """Return a connection after its login."""
        connection: StreamConnection
        if server.scheme == "redis+unix":
            connection = opener.unix(server)
        elif server.scheme in ("rediss", "valkeys"):
            connection = opener.start_tls(opener.socket(server), server)
        else:
            connection = TCPConnection(opener.socket(server), server.scheme)
        try:
            self._redislink.log_in(connection, server, bool(self.plane.history))
        except BaseException:
            connection.close()
            raise
        return connection
