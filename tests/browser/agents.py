"""What runs JavaScript for tests: Node, and the tabs of a Chromium. Both evaluate code and return its value."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import gevent
from gevent import subprocess
from websockets.frames import Opcode

from gmultisocket.testing import wait_until
from tests.transport.test_ws_browser import browsing
from tests.transport.wspeers import RawPeer, frame, request

__all__ = ["MODULE", "NODE", "PRELUDE", "Chromium", "Node", "Tab", "chromium", "node"]

ROOT = Path(__file__).resolve().parent.parent.parent
#: As pages get it.
MODULE = ROOT / "gmultisocket/browser/gmultisocket.min.js"
#: Node 20 has a WebSocket with this flag, and needs it; from 22 on it has one anyway.
NODE = "node --experimental-websocket"
#: How long a program may take to come up, and an evaluation to end, on a busy machine, in seconds.
PATIENCE = 40

#: Makes clients that connect again at once, and records their events.
PRELUDE = """
kept.client?.close();
kept.seen = []; kept.events = [];
kept.make = (url, options) => {
  const client = kept.client = new Client(url, {minDelay: 10, maxDelay: 50, ...options});
  for (const type of ["open", "close", "gap", "refused"]) {
    client.addEventListener(type, event => kept.events.push({type, ...event, isTrusted: undefined}));
  }
  return client;
};
kept.until = async condition => { while (!condition()) await new Promise(resolve => setTimeout(resolve, 5)); };
"""

_AGENT = """
import {createInterface} from "node:readline";
import * as gmultisocket from "%s";
Object.assign(globalThis, gmultisocket, {kept: {}});
const AsyncFunction = (async () => {}).constructor;
for await (const line of createInterface({input: process.stdin})) {
  let result;
  try { result = {value: await new AsyncFunction(JSON.parse(line))()}; }
  catch (error) { result = {error: error.stack}; }
  console.log(JSON.stringify(result));
}
process.exit();
"""


class Failed(AssertionError):
    """An evaluation has raised an error."""


class Node:
    """A Node in which the names of the client's module, and an object ``kept``, are global."""

    def __init__(self, process: Any) -> None:
        self._process = process

    def evaluate(self, code: str) -> Any:
        """Return the value of the body of an async function."""
        self._process.stdin.write(json.dumps(code).encode() + b"\n")
        self._process.stdin.flush()
        with gevent.Timeout(PATIENCE, AssertionError(f"no end within {PATIENCE} s: {code}")):
            result = json.loads(self._process.stdout.readline())
        if "error" in result:
            raise Failed(result["error"])
        return result.get("value")


@contextmanager
def node() -> Iterator[Node]:
    """Run Node until the body has ended."""
    with TemporaryDirectory() as folder:
        script = Path(folder) / "agent.mjs"
        script.write_text(_AGENT % MODULE)
        process = subprocess.Popen(
            [*NODE.split(), "--no-warnings", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            yield Node(process)
        finally:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


class _Inspector(RawPeer):
    """A connection to Chromium's debugger.

    Attributes:
        events: what it has said without being asked.
    """

    def __init__(self, address: str) -> None:
        super().__init__(address, PATIENCE)
        self.send(request("/" + address.split("/", 3)[3], {"Sec-WebSocket-Protocol": None}))
        assert self.status() == 101
        self._count = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **parameters: Any) -> Any:
        self._count += 1
        self.send(frame(Opcode.TEXT, json.dumps({"id": self._count, "method": method, "params": parameters}).encode()))
        text = b""
        while True:
            piece = self.read_frame()
            text += piece.data
            if not piece.fin:
                continue
            answer, text = json.loads(text), b""
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)


class Tab:
    """A tab of a Chromium. In its page there is an object ``kept`` that evaluations may use."""

    def __init__(self, address: str) -> None:
        self.inspector = _Inspector(address)
        self.inspector.call("Page.enable")

    def visit(self, url: str) -> None:
        """Load a page. Blocks until it has loaded."""
        self.inspector.call("Page.navigate", url=url)
        wait_until(lambda: self.evaluate("return [location.href, document.readyState]") == [url, "complete"], PATIENCE)

    def close(self) -> None:
        self.inspector.call("Page.close")
        self.inspector.close()

    def evaluate(self, code: str) -> Any:
        """Return the value of the body of an async function."""
        wrapped = f"(async () => {{ globalThis.kept ??= {{}}; {code}\n}})()"
        result = self.inspector.call("Runtime.evaluate", expression=wrapped, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise Failed(json.dumps(result["exceptionDetails"]["exception"]))
        return result["result"].get("value")


AnyTab = TypeVar("AnyTab", bound=Tab)


class Chromium:
    """A Chromium without a window."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._inspector = _Inspector(address)

    @contextmanager
    def tab(
        self, url: str, kind: type[AnyTab] = Tab, own_connections: bool = False  # type: ignore[assignment]
    ) -> Iterator[AnyTab]:
        """Open another tab, until the body has ended.

        Args:
            url: what it shows.
            kind: its class.
            own_connections: it has the cookies of the tabs before it, and none of the connections that Chromium keeps
                for them or has opened in advance.
        """
        context = {}
        if own_connections:
            context = self._inspector.call("Target.createBrowserContext")
            self._inspector.call("Storage.setCookies", **self._inspector.call("Storage.getCookies"), **context)
        target = self._inspector.call("Target.createTarget", url="about:blank", **context)["targetId"]
        tab = kind(re.sub("/devtools/.*", f"/devtools/page/{target}", self._address))
        try:
            tab.visit(url)
            yield tab
        finally:
            tab.close()
            if context:
                self._inspector.call("Target.disposeBrowserContext", **context)

    def close(self) -> None:
        self._inspector.close()


@contextmanager
def chromium(*flags: str) -> Iterator[Chromium]:
    """Run Chromium until the body has ended."""
    with browsing("about:blank", "--remote-debugging-port=0", *flags) as profile:
        place = profile / "DevToolsActivePort"
        wait_until(lambda: place.exists() and place.read_text().count("\n") == 1, PATIENCE)
        port, path = place.read_text().split("\n")
        browser = Chromium(f"ws://127.0.0.1:{port}{path}")
        try:
            yield browser
        finally:
            browser.close()
