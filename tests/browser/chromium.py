"""A Chromium without a window: shows pages, and evaluates JavaScript in its tabs."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gevent import subprocess
from websockets.frames import Opcode

from gmultisocket.testing import wait_until
from tests.browser.agents import PATIENCE, Failed
from tests.transport.wspeers import RawPeer, frame, request

__all__ = ["Chromium", "Tab", "browsing", "chromium"]

_COMPLAINTS = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")


@contextmanager
def browsing(url: str, *flags: str) -> Iterator[Path]:
    """Show a page in Chromium while the body runs. Yields the folder of the browser's profile."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            ["chromium", "--headless", "--no-sandbox", "--no-zygote", "--no-first-run", "--disable-gpu",
             "--disable-breakpad", "--disable-dev-shm-usage", f"--user-data-dir={folder}/profile", *flags, url],
            env=os.environ | {"HOME": folder, "TMPDIR": folder}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield Path(folder) / "profile"
        finally:
            # Asked to end, it clears away what it has outside of the folder; what it has started is in its session.
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            wait_until(lambda: not _kill(_session(process.pid)))
            process.wait()


def _session(leader: int) -> list[int]:
    """Return the living processes of a session."""
    members = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(session) == leader and state not in "XZ":
            members.append(int(entry.name))
    return members


def _kill(processes: list[int]) -> int:
    """Kill processes, and return how many there were."""
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return len(processes)


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
        for domain in ("Page", "Runtime", "Log"):
            self.inspector.call(f"{domain}.enable")

    def open(self, url: str) -> None:
        """Load a page, or the one that it redirects to. Blocks until it has loaded."""
        self.inspector.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def visit(self, url: str) -> None:
        """Load a page that does not redirect. Blocks until it has loaded."""
        self.open(url)
        self.wait(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

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

    def value(self, expression: str) -> Any:
        """Return the value of an expression."""
        return self.evaluate(f"return {expression}")

    def text(self, selector: str) -> str:
        """Return the text that an element shows; "" if it is not there."""
        return str(self.value(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def wait(self, expression: str) -> None:
        """Block until an expression is true."""
        wait_until(lambda: self.value(expression), PATIENCE, f"{expression}; {self.complaints}")

    @property
    def complaints(self) -> list[str]:
        """What the page and the browser have complained of: errors, and what a policy has blocked."""
        return [json.dumps(each["params"]) for each in self.inspector.events if each["method"] in _COMPLAINTS]

    def look_as(self, width: int, scheme: str) -> None:
        """Set the width of the window, and whether its user prefers light or dark."""
        self.inspector.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        self.inspector.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self) -> bytes:
        """Return a screenshot, as a PNG."""
        return base64.b64decode(self.inspector.call("Page.captureScreenshot", format="png")["data"])


class Chromium:
    """A Chromium without a window."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._inspector = _Inspector(address)

    @contextmanager
    def tab(self, url: str = "about:blank", own_connections: bool = False) -> Iterator[Tab]:
        """Open another tab while the body runs.

        Args:
            url: what it shows.
            own_connections: it has the cookies of the tabs before it, and none of the connections that Chromium keeps
                for them or has opened in advance.
        """
        context = {}
        if own_connections:
            context = self._inspector.call("Target.createBrowserContext")
            self._inspector.call("Storage.setCookies", **self._inspector.call("Storage.getCookies"), **context)
        target = self._inspector.call("Target.createTarget", url="about:blank", **context)["targetId"]
        tab = Tab(re.sub("/devtools/.*", f"/devtools/page/{target}", self._address))
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
    """Run Chromium while the body runs."""
    with browsing("about:blank", "--remote-debugging-port=0", *flags) as profile:
        place = profile / "DevToolsActivePort"
        wait_until(lambda: place.exists() and place.read_text().count("\n") == 1, PATIENCE)
        port, path = place.read_text().split("\n")
        browser = Chromium(f"ws://127.0.0.1:{port}{path}")
        try:
            yield browser
        finally:
            browser.close()
