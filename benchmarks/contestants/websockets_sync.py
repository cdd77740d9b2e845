"""The threads of ``websockets.sync`` under gevent's monkey patching, as in a legacy program.

The import of this module patches the process: only a process that runs this contestant imports it. Compression is off,
as it is in gmultisocket; all other settings are the defaults.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import threading  # noqa: E402
from typing import Any  # noqa: E402

from websockets.sync.client import connect  # noqa: E402
from websockets.sync.server import serve  # noqa: E402

from .base import Contestant  # noqa: E402

__all__ = ["Adapter"]


class Adapter(Contestant):
    green = True

    def __init__(self) -> None:
        self._peer: Any = None
        self._arrived = threading.Event()

    def listen(self, purpose: str, address: str) -> str:
        server = serve(self._keep, "127.0.0.1", 0, compression=None)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.recv = self._first
        return f"ws://127.0.0.1:{server.socket.getsockname()[1]}/"

    def dial(self, purpose: str, address: str) -> None:
        self._peer = connect(address, compression=None)
        self.send, self.recv = self._peer.send, self._peer.recv

    def _keep(self, peer: Any) -> None:
        """Hold a connection until the process ends: the library closes it when this returns."""
        self._peer = peer
        self._arrived.set()
        threading.Event().wait()

    def _first(self) -> bytes:
        """Receive the first message, and replace ``recv`` by the connection's own method."""
        self._arrived.wait()
        self.send, self.recv = self._peer.send, self._peer.recv
        content: bytes = self.recv()
        return content
