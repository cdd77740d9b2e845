"""What mypy and pyright say about programs that use the library: right ones pass, and each wrong line is an error.

A line that ends with ``# wrong`` must be refused, and every other line accepted. Skipped where a checker is missing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

HEAD = """\
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gmultisocket import Pair, Pub, Req, Socket, Sub, options, pair, protocol
from gmultisocket.options import Option, Options, OptionValues


"""

PROGRAMS = {
    "options_by_name": """
def right(sock: Socket) -> None:
    Socket()
    Socket({})
    Socket(None)
    Socket({"socket.no_recv": True})
    Socket({"socket.send_ttl": 3, "socket.send_overflow": "drop_oldest", "socket.send_stop_timeout": 1})
    Socket({"socket.send_stop_timeout": 0.5, "connector.listener.over_limit": "refuse"})
    sock.listen("tcp://*:1", {"transport.tls.certfile": "x.pem", "transport.ipc.allow_uids": [1000]})
    sock.dial("ws://host/", {"transport.ws.headers": {"Authorization": "x"}, "transport.tls.password": lambda: b"x"})
    sock.connect("tcp://host:1#dial", {"connector.dialer.dial_async": True})
    pair({"socket.send_queue_size": 1})
    Pub({"protocol.pubsub.max_patterns": 3})
    Req({"socket.send_queue_size": 3})


def wrong(sock: Socket) -> None:
    Socket({"socket.no_rcv": True})  # wrong
    Socket({"socket.no_recv": "yes"})  # wrong
    Socket({"socket.no_recv": True, "socket.send_tll": 3})  # wrong
    Socket({"socket.send_ttl": "16"})  # wrong
    Socket({"socket.send_overflow": "drop"})  # wrong
    Socket({1: True})  # wrong
    Socket(["socket.no_recv"])  # wrong
    sock.listen("tcp://*:1", {"transport.ipc.allow_uids": 1000})  # wrong
    sock.dial("tcp://host:1", {"connector.dialer.dial_timeout": "5s"})  # wrong
    Pub({"protocol.pubsub.max_pattern": 3})  # wrong
""",
    "options_by_option": """
def right(sock: Socket, several: dict[Option[Any], Any]) -> None:
    Socket({options.socket.no_recv: True})
    Socket({options.socket.no_recv: True, options.socket.send_ttl: 3, options.transport.tls.context: None})
    Socket(several)
    sock.listen("tcp://*:1", {options.connector.listener.backlog: 1})
    Sub({options.protocol.pubsub.expiry: 1.0, options.socket.send_overflow: "block"})
    no_recv: bool = Options().get(options.socket.no_recv)
    Options().set(options.socket.no_recv, no_recv)


def wrong(sock: Socket) -> None:
    Socket({options.socket.no_rcv: True})  # wrong
    Socket({True: options.socket.no_recv})  # wrong
    Options().set(options.socket.no_recv, "yes")  # wrong
    text: str = Options().get(options.socket.no_recv)  # wrong
""",
    "options_in_variables": """
def right(anything: dict[str, Any], mapping: Mapping[str, Any]) -> None:
    Socket(anything)
    Socket(mapping)
    values: OptionValues = {"socket.no_recv": True}
    Socket(values)
    more: OptionValues = {options.socket.no_recv: True}
    Pub(more)


def wrong(numbers: dict[str, int], objects: Mapping[str, object], lists: dict[str, list[int]]) -> None:
    values: OptionValues = {"socket.no_rcv": True}  # wrong
    Socket(numbers)  # wrong
    Socket(objects)  # wrong
    Socket(lists)  # wrong
""",
    "contents": """
def right(sock: Socket, data: bytearray, view: memoryview) -> None:
    for content in (data, view, b"bytes"):
        sock.send(content)
        sock.send_all(content, timeout=1)
        sock.send_to(b"path", content)
    sock.send(data)
    sock.send(view)
    with sock.threadsafe() as handle:
        handle.send(data)
        handle.send_all(view)
        handle.send_to(b"path", data)
    received: bytes = sock.recv()


def wrong(sock: Socket) -> None:
    sock.send("text")  # wrong
    sock.send_all(3)  # wrong
    sock.send_to(b"path", ["x"])  # wrong
    sock.send([1, 2])  # wrong
    text: str = sock.recv()  # wrong
""",
    "contents_of_protocols": """
def right(data: bytearray, view: memoryview, connection: protocol.StreamSocket, surveyor: protocol.Surveyor) -> None:
    for content in (data, view, b"bytes"):
        Pub().publish("topic", content)
        Req().request(content, timeout=1)
        Pair().send(content)
        protocol.Push().send(content)
        protocol.Bus().send(content)
        surveyor.survey(content, 1)
        connection.send(content)
        connection.sendall(content)
    topic, content = Sub().recv()
    connection.recv_into(data)


def answer(request: protocol.ReceivedRequest, view: memoryview) -> None:
    request.reply(view)


def wrong(connection: protocol.StreamSocket) -> None:
    Pub().publish("topic", "text")  # wrong
    Pub().publish(b"topic", b"bytes")  # wrong
    Req().request("text")  # wrong
    Pair().send(None)  # wrong
    connection.sendall("text")  # wrong
    connection.recv_into(3)  # wrong
""",
    "paths": """
from gmultisocket.wire import Decoder, Message, check_path


def right(data: bytearray, view: memoryview) -> None:
    path: bytes = check_path(data)
    check_path(view)
    messages: list[Message] = Decoder(1).feed(view)


def wrong() -> None:
    check_path("path")  # wrong
    Decoder(1).feed("text")  # wrong
""",
    "json": """
from gmultisocket.protocol import jsoncodec


def right() -> None:
    plain: Pub = jsoncodec.Pub()
    protocol.Session({"events": plain, "rpc": jsoncodec.Rep(lambda value: value["a"], concurrency=2)})
    jsoncodec.Pub({"protocol.pubsub.max_patterns": 3}).publish("a", {"b": 1}, retain=True)
    for topic, value in jsoncodec.Sub():
        text: str = topic
        number: int = value["b"]
    answer: dict[str, int] = jsoncodec.Req().request([1, 2], 5)
    jsoncodec.Bus().send({"a": [1]})
    jsoncodec.Pull().recv(5)["a"]


def wrong() -> None:
    jsoncodec.Pub().publish(1, {})  # wrong
    jsoncodec.Rep()  # wrong
    jsoncodec.Rep(b"x")  # wrong
    jsoncodec.Sub().recv()[0].nothing  # wrong
    jsoncodec.Push().recv_value()  # wrong
""",
    "names": """
import gmultisocket
from gmultisocket import Bus, Pull, Push, Rep, Respondent, Stream, StreamProxy, Surveyor


def right() -> None:
    one: gmultisocket.Pub = Pub()
    two: gmultisocket.protocol.Sub = protocol.Sub()
    three: type[protocol.Stream] = Stream


def wrong() -> None:
    gmultisocket.Pubb()  # wrong
    number: int = Pub()  # wrong
    gmultisocket.protocol.Subb  # wrong
    Pub().publsh("topic", b"")  # wrong
""",
    "protocol_of_the_program": (ROOT / "examples/jobs/jobs.py").read_text().replace("from __future__", "# ")
    + """

def wrong(queue: JobQueue) -> None:
    queue.put("text")  # wrong
    JobQueue()._spawm(queue.close)  # wrong
    JobQueue()._report("a handler failed", "why")  # wrong
""",
}


Report = dict[str, set[int]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all programs are."""
    folder = tmp_path_factory.mktemp("programs")
    for name, text in PROGRAMS.items():
        (folder / f"{name}.py").write_text(HEAD + text)
    return folder


def find(checker: str) -> str:
    """Return a checker's path, that of this environment before any other one."""
    here = Path(sys.executable).with_name(checker)
    path = str(here) if here.exists() else shutil.which(checker)
    if path is None:
        pytest.skip(f"{checker} is not installed")
    return path


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "MYPYPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=250
    )


@pytest.fixture(scope="module")
def mypy(folder: Path) -> Report:
    """The lines with an error of mypy, by program."""
    options = ["--strict", "--follow-imports=silent", "--no-color-output", "--no-error-summary"]
    done = run([find("mypy"), *options, "--cache-dir", str(folder / ".cache"), "."], folder)
    # 2: mypy itself failed.
    assert done.returncode in (0, 1), done.stdout + done.stderr
    report: Report = {name: set() for name in PROGRAMS}
    for name, line in re.findall(r"^(\w+)\.py:([0-9]+): error:", done.stdout, re.MULTILINE):
        report[name].add(int(line))
    return report


@pytest.fixture(scope="module")
def pyright(folder: Path) -> Report:
    """The lines with an error of pyright, by program."""
    settings = {"include": ["*.py"], "extraPaths": [str(ROOT)], "typeCheckingMode": "standard"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    done = run([find("pyright"), "--outputjson", "--pythonpath", sys.executable], folder)
    try:
        found = json.loads(done.stdout)["generalDiagnostics"]
    except (ValueError, KeyError):
        # It is a program for Node.js, which the Python package downloads when it is first used.
        pytest.skip(f"pyright cannot run here: {(done.stderr or done.stdout).strip()[-300:]}")
    report: Report = {name: set() for name in PROGRAMS}
    for entry in found:
        if entry["severity"] == "error":
            report[Path(entry["file"]).stem].add(entry["range"]["start"]["line"] + 1)
    return report


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_wrong_lines_are_refused_and_no_others(
    checker: str, name: str, request: pytest.FixtureRequest, lines: Callable[[str, set[int]], list[str]]
) -> None:
    report: Report = request.getfixturevalue(checker)
    text = HEAD + PROGRAMS[name]
    expected = {number for number, line in enumerate(text.split("\n"), 1) if line.endswith("# wrong")}
    assert expected
    assert not lines(text, report[name] - expected), "refused, and right"
    assert not lines(text, expected - report[name]), "accepted, and wrong"


@pytest.fixture
def lines() -> Callable[[str, set[int]], list[str]]:
    """Return lines of a program by their numbers."""
    return lambda text, numbers: [text.split("\n")[number - 1].strip() for number in sorted(numbers)]
