"""A gunicorn with one gevent worker and a mounted Socket, or no library at all: servers of the row ``memory-ws``."""

from __future__ import annotations

import ctypes
import signal
from typing import Any

from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]

from .worker import say

__all__ = ["serve"]

_PR_SET_PDEATHSIG = 1


def serve(peers: int, alone: bool = False) -> None:
    """Serve; gunicorn's worker measures itself when all peers are connected (worker).

    Args:
        peers: how many.
        alone: an application that only waits takes the place of the library.
    """
    _Gunicorn(peers, alone).run()


class _Waiting:
    """A WSGI application that accepts each request for a WebSocket, and waits for the end of its connection."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("101 Switching Protocols", [("Upgrade", "websocket"), ("Connection", "Upgrade")])
        write(b"")
        self._count += 1
        environ["gunicorn.socket"].recv(1)
        return []

    def wait_pipes(self, count: int) -> None:
        import gevent

        while self._count < count:
            gevent.sleep(0.01)


class _Gunicorn(BaseApplication):  # type: ignore[misc]
    def __init__(self, peers: int, alone: bool) -> None:
        self._peers = peers
        self._alone = alone
        self._sock: Any = None
        super().__init__()

    def load_config(self) -> None:
        chosen = {
            "bind": "127.0.0.1:0",
            "worker_class": "gevent",
            "worker_connections": self._peers + 100,
            "backlog": 4096,
            "loglevel": "error",
            # Newer versions of gunicorn leave a socket in the home directory.
            "control_socket_disable": True,
            "post_worker_init": self._watch,
        }
        for name, value in chosen.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Any:
        """Return the application; gunicorn calls this in its worker."""
        if self._alone:
            self._sock = _Waiting()
            return self._sock
        from gmultisocket import Socket
        from gmultisocket.contrib.wsgi import mount

        self._sock = Socket()
        return mount(self._sock, "/")

    def _watch(self, worker: Any) -> None:
        import gevent

        # The benchmark kills the master, which then cannot end its worker.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        gevent.spawn(self._compare, worker.sockets[0].getsockname()[1])

    def _compare(self, port: int) -> None:
        import gevent

        from .memory import SETTLE_TIME, resident_kib

        before = resident_kib()
        say(address=f"ws://127.0.0.1:{port}/", handshake="ws")
        self._sock.wait_pipes(self._peers)
        gevent.sleep(SETTLE_TIME)
        say(kib=resident_kib() - before)
