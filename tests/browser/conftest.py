"""One Node for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.agents import PRELUDE, Node, node


@pytest.fixture(scope="module")
def running_node() -> Iterator[Node]:
    with node() as agent:
        yield agent


@pytest.fixture
def js(running_node: Node) -> Iterator[Node]:
    """A Node in which the client's names are global, and what the prelude makes is new."""
    running_node.evaluate(PRELUDE)
    yield running_node
    running_node.evaluate("kept.client?.close()")
