"""A page in a real Chromium, driven by its debugging protocol."""

from __future__ import annotations

import base64
import json
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gevent import socket as gsocket
from websocket import create_connection

from gmultisocket.testing import wait_until
from tests.transport.test_ws_browser import PATIENCE, browsing

__all__ = ["PATIENCE", "Page", "page_in_chromium"]


class Page:
    """An open page.

    Attributes:
        complaints: what the page and the browser have to complain of: errors, and what a policy has blocked.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._number = 0
        self.complaints: list[str] = []
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol, and return its result."""
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._connection.recv())
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
                self.complaints.append(json.dumps(answer["params"]))

    def open(self, url: str) -> None:
        """Go to another page."""
        self.call("Page.navigate", url=url)

    def look_as(self, width: int, scheme: str) -> None:
        """Be a window of a width, of somebody who likes it light or dark."""
        narrow = width < 500
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=narrow)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def text(self, selector: str) -> str:
        """Return the text that an element shows; "" if it is not there."""
        return str(self.value(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def wait(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        wait_until(lambda: self.value(expression), PATIENCE, f"{expression}; {self.complaints}")

    def picture(self) -> bytes:
        """Return a screenshot, as a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


@contextmanager
def page_in_chromium() -> Iterator[Page]:
    """An empty page, in a Chromium that ends with the body."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with browsing("about:blank", f"--remote-debugging-port={port}"):
        targets: list[Any] = []

        def is_up() -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=10) as answer:
                    targets[:] = [each for each in json.load(answer) if each["type"] == "page"]
            except OSError:
                return False
            return bool(targets)

        wait_until(is_up, PATIENCE, "Chromium")
        connection = gsocket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        client = create_connection(targets[0]["webSocketDebuggerUrl"], socket=connection, suppress_origin=True)
        try:
            yield Page(client)
        finally:
            client.close()
