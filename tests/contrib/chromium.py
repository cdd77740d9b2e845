"""A page in a real Chromium, looked at as people do."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gmultisocket.testing import wait_until
from tests.browser.agents import Tab, chromium
from tests.transport.test_ws_browser import PATIENCE

__all__ = ["PATIENCE", "Page", "page_in_chromium"]

_COMPLAINTS = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")


class Page(Tab):
    """An open page."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.call = self.inspector.call
        for domain in ("Runtime", "Log"):
            self.call(f"{domain}.enable")

    @property
    def complaints(self) -> list[str]:
        """What the page and the browser have to complain of: errors, and what a policy has blocked."""
        return [json.dumps(each["params"]) for each in self.inspector.events if each["method"] in _COMPLAINTS]

    def open(self, url: str) -> None:
        """Load another page."""
        self.call("Page.navigate", url=url)

    def look_as(self, width: int, scheme: str) -> None:
        """Set the width of the window, and whether its user prefers light or dark."""
        narrow = width < 500
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=narrow)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        return self.evaluate(f"return {expression}")

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
    with chromium() as browser, browser.tab("about:blank", Page) as page:
        yield page
