"""One Node for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.agents import Node, node


@pytest.fixture(scope="module")
def js() -> Iterator[Node]:
    """A Node in which the client's names are global."""
    with node() as agent:
        yield agent
