"""gmultisocket mounted in gevent.pywsgi."""

from __future__ import annotations

from gevent.pywsgi import WSGIServer

from gmultisocket.contrib.wsgi import mount

from . import ours

__all__ = ["Adapter"]


class Adapter(ours.Adapter):
    def listen(self, purpose: str, address: str) -> str:
        self.socket.set_option("socket.send_queue_size", self.fan_out_queue)
        self.handshake = "ws"
        self._wsgi = WSGIServer(("127.0.0.1", 0), mount(self.socket, "/"), log=None, backlog=4096)
        self._wsgi.start()
        return f"ws://127.0.0.1:{self._wsgi.server_port}/"
