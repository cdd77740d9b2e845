"""The package's own names: what is there after ``import gmultisocket``, and what that imports."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest

import gmultisocket
from gmultisocket import protocol

ROOT = Path(__file__).resolve().parent.parent
PROTOCOLS = "Bus Pair Pub Pull Push Rep Req Respondent Stream StreamProxy Sub Surveyor".split()


def run(program: str) -> str:
    """Return what a program prints in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_name_in_all_is_there_and_in_dir() -> None:
    for name in gmultisocket.__all__:
        assert getattr(gmultisocket, name) is not None
    assert set(gmultisocket.__all__) <= set(dir(gmultisocket))
    assert sorted(gmultisocket.__all__) == gmultisocket.__all__, "sorted, and each name once"


def test_the_classes_of_all_protocols_are_names_of_the_package() -> None:
    for name in PROTOCOLS:
        assert name in gmultisocket.__all__
        assert getattr(gmultisocket, name) is getattr(protocol, name)


@pytest.mark.parametrize(
    "program",
    [
        "import gmultisocket; print(gmultisocket.protocol.Pub.__name__)",
        "import gmultisocket; print(gmultisocket.Pub.__name__)",
        "from gmultisocket import Pub; print(Pub.__name__)",
        "from gmultisocket import protocol; print(protocol.Pub.__name__)",
        "from gmultisocket import *; print(Pub.__name__)",
        "import gmultisocket.protocol; print(gmultisocket.Pub.__name__)",
    ],
)
def test_protocols_are_there_without_an_import_of_their_own(program: str) -> None:
    assert run(program) == "Pub"


def test_importing_the_package_imports_no_protocol_and_nothing_for_type_checkers() -> None:
    program = """
import sys, gmultisocket
dir(gmultisocket)
for name in (
    "protocol", "options.names", "options.values", "transport.tls", "transport.ws", "core.protocolsocket",
    "core.threadsafe",
):
    assert "gmultisocket." + name not in sys.modules, name
"""
    run(program)


def test_a_name_that_is_not_there_is_an_attribute_error_that_says_so() -> None:
    with pytest.raises(AttributeError, match="module 'gmultisocket' has no attribute 'Pubb'"):
        gmultisocket.Pubb  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Pubb'"):
        from gmultisocket import Pubb  # noqa: F401


def test_the_description_for_an_index_is_the_readme_without_its_pictures() -> None:
    """An index shows only pictures that have a URL."""
    try:
        description = metadata("gmultisocket")["Description"]
    except PackageNotFoundError:
        pytest.skip("gmultisocket is not installed here")
    assert "\nQuick start\n" in description
    assert "image::" not in description


# Names that completion offers

SOCKET = {
    "close", "close_nowait", "close_pipe", "closed", "connect", "counters", "dial", "dialers", "flush",
    "get_option", "listen", "listeners", "on_pipe", "options", "pipes", "queued", "reconnects", "recv", "recv_msg",
    "send", "send_all", "send_msg", "send_to", "set_negotiator", "set_option", "stats", "stop_dial", "stop_listen",
    "threadsafe", "wait_pipes",
}  # fmt: skip
ENDPOINT = {"address", "close", "closed", "dials", "given_address", "options", "state"}
PIPE = {
    "bytes_received", "bytes_sent", "carrier", "close", "closed", "counters", "dialed", "endpoint", "full", "id",
    "identity", "local_address", "messages_received", "messages_sent", "options", "path", "peer_address", "queued",
    "queued_bytes", "raw", "reason", "state", "stats", "unacknowledged",
}  # fmt: skip


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def test_what_completes_is_what_is_public(address: str) -> None:
    with gmultisocket.Socket() as server, gmultisocket.Socket() as client:
        assert public(server) == SOCKET
        listener = server.listen(address)
        assert public(listener) == ENDPOINT | {"accepted", "refused", "serve", "transport"}
        dialer = client.dial(listener.address)
        assert public(dialer) == ENDPOINT | {"attempts", "last_error", "pipe", "reconnects"}
        server.wait_pipes(1, timeout=5)
        for sock in (server, client):
            (pipe,) = sock.pipes.values()
            assert public(pipe) == PIPE


def test_what_completes_on_a_raw_pipe_is_no_more() -> None:
    with gmultisocket.Socket({"connector.pipe.raw": True}) as server, gmultisocket.Socket() as client:
        for scheme in ("tcp", "ws"):
            client.dial(server.listen(f"{scheme}://127.0.0.1:0").address)
        server.wait_pipes(2, timeout=5)
        assert [public(pipe) for pipe in server.pipes.values()] == [PIPE, PIPE]
