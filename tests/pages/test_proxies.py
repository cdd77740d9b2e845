"""The configurations of docs/proxies.rst, in a real nginx and a real HAProxy."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gevent import subprocess

from gmultisocket import Socket
from gmultisocket.errors import RequestRefused
from gmultisocket.testing import wait_until
from gmultisocket.transport.ws import UpgradeRequest
from tests.backplane.hubs import listens
from tests.faults.peers import free_port
from tests.faults.process import needs

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs/proxies.rst").read_text()
PATIENCE = 30
_NGINX = """daemon off;
pid {0}/pid;
error_log {0}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {0}/body;
    proxy_temp_path {0}/proxy;
    fastcgi_temp_path {0}/fastcgi;
    uwsgi_temp_path {0}/uwsgi;
    scgi_temp_path {0}/scgi;
{1}
}}
"""
PROXIES = [pytest.param("nginx", marks=needs("nginx -v")), pytest.param("haproxy", marks=needs("haproxy -v"))]


def configuration(kind: str) -> str:
    """Return what the page shows."""
    heading, language = {"nginx": ("nginx", "nginx"), "haproxy": ("HAProxy", "text")}[kind]
    section = re.split(rf"^{heading}\n-+\n", PAGE, flags=re.MULTILINE)[1]
    (code, *_) = re.findall(rf"^\.\. code-block:: {language}\n\n((?:    .*\n|\n)+)", section, re.MULTILINE)
    return textwrap.dedent(code)


@contextmanager
def proxy(kind: str, folder: Path, shown: str, server: Socket, **options: object) -> Iterator[str]:
    """Run a proxy before a listener, and give the address at which it takes WebSockets."""
    port = free_port()
    values = {f"transport.ws.{name}": value for name, value in options.items()}
    behind = server.listen("ws://127.0.0.1:0/ws", values).address
    text = shown.replace("127.0.0.1:8080", f"127.0.0.1:{port}").replace("127.0.0.1:8000", behind.split("/")[2])
    file = folder / "configuration"
    file.write_text(_NGINX.format(folder, text) if kind == "nginx" else text)
    arguments = {"nginx": ["-e", f"{folder}/error.log", "-c", str(file)], "haproxy": ["-db", "-f", str(file)]}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen([kind, *arguments[kind]], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until(lambda: process.poll() is not None or listens(f"tcp://127.0.0.1:{port}"), PATIENCE)
        assert process.poll() is None, (folder / "log").read_text()
        yield f"ws://127.0.0.1:{port}/ws"
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.mark.parametrize("kind", PROXIES)
def test_a_page_connects_through_the_proxy_and_is_known_by_its_address(kind: str, tmp_path: Path) -> None:
    seen: list[str | None] = []

    def authorize(request: UpgradeRequest) -> dict[str, str]:
        seen.append(request.headers.get("X-Forwarded-For"))
        return {"user": "guest"}

    with Socket() as server, Socket() as client:
        listener = {"listener.authorize": authorize}
        with proxy(kind, tmp_path, configuration(kind), server, **listener) as address:  # type: ignore[arg-type]
            origin = address.replace("ws:", "http:").removesuffix("/ws")
            client.dial(address, {"transport.ws.headers": {"Origin": origin}})
            client.send(b"hello")
            message = server.recv_msg(timeout=PATIENCE)
            server.send_to(message.source, b"and hello")
            assert client.recv(timeout=PATIENCE) == b"and hello"
            with pytest.raises(RequestRefused) as refusal:
                client.dial(address, {"transport.ws.headers": {"Origin": "http://evil.example"}})
            assert refusal.value.status == 403
    assert seen == ["127.0.0.1"]


@pytest.mark.parametrize("kind", PROXIES)
def test_pings_keep_a_quiet_connection_which_the_proxy_would_close(kind: str, tmp_path: Path) -> None:
    """The proxy's timeout is a second here, and not a minute: so long the test takes."""
    shown = configuration(kind).replace("60s", "1s")
    with Socket() as server, Socket() as pinged, Socket() as quiet:
        with proxy(kind, tmp_path, shown, server, ping_interval=0) as address:
            once = {"connector.dialer.reconnect": False}
            pinged.dial(address, {**once, "transport.ws.ping_interval": 0.2})
            quiet.dial(address, {**once, "transport.ws.ping_interval": 0})
            pinged.wait_pipes(1, timeout=PATIENCE)
            wait_until(lambda: not quiet.pipes, PATIENCE)
            pinged.send(b"still here")
            assert server.recv(timeout=PATIENCE) == b"still here"


@needs("nginx -v")
def test_without_the_upgrade_the_server_says_what_is_wrong(tmp_path: Path) -> None:
    shown = re.sub(".*(proxy_http_version|Upgrade|Connection) .*\n", "", configuration("nginx"))
    with Socket() as server, Socket() as client, proxy("nginx", tmp_path, shown, server) as address:
        with pytest.raises(RequestRefused) as refusal:
            client.dial(address)
        assert refusal.value.status in (400, 426, 505)
