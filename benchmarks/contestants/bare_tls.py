"""Bare gevent TLS sockets: those of ``bare.py``, wrapped with TLS."""

from __future__ import annotations

from typing import Any

from gevent import ssl

from . import bare
from .base import query_to_dial

__all__ = ["Adapter"]


class Adapter(bare.Adapter):
    def __init__(self) -> None:
        super().__init__()
        self._context: Any = None

    def listen(self, purpose: str, address: str) -> str:
        self.handshake = "tls"
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # The dialer reads no tickets: with unread ones its close would be a reset.
        self._context.num_tickets = 0
        self._context.load_cert_chain(address.partition("=")[2])
        return super().listen(purpose, address) + query_to_dial(address)

    def dial(self, purpose: str, address: str) -> None:
        place, _, query = address.partition("?")
        super().dial(purpose, place)
        context = ssl.create_default_context(cafile=query.partition("=")[2])
        self._socket = context.wrap_socket(self._socket, server_hostname="127.0.0.1")

    def _accept(self) -> None:
        super()._accept()
        self._socket = self._context.wrap_socket(self._socket, server_side=True)

    def _keep(self, peer: Any, address: object) -> None:
        super()._keep(self._context.wrap_socket(peer, server_side=True), address)

    def _write(self, data: bytes) -> None:
        for peer in self._peers:
            if peer._sslobj.write(data) != len(data):
                raise ConnectionError("a peer reads too slowly for a publisher without queues")
