"""A fresh process of a benchmark: runs one function of one work and talks JSON lines over stdin and stdout.

Started by :class:`benchmarks.harness.Peer` as ``python -m benchmarks.worker module:function '{"argument": ...}'``.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from importlib import import_module
from typing import Any

__all__ = ["hear", "say"]

#: A worker whose parent was killed ends by itself after so many seconds.
_LIFETIME = 180


def say(**fields: Any) -> None:
    """Tell the parent something."""
    print(json.dumps(fields), flush=True)


def hear() -> dict[str, Any]:
    """Block the whole process until the parent tells something, and return that."""
    line = sys.stdin.readline()
    if not line:
        sys.exit("the parent is gone")
    heard: dict[str, Any] = json.loads(line)
    return heard


def raise_descriptor_limit() -> int:
    """Allow this process as many descriptors as the system lets it have, and return how many that are."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def main() -> None:
    signal.alarm(_LIFETIME)
    raise_descriptor_limit()
    module, _, function = sys.argv[1].partition(":")
    getattr(import_module(f"benchmarks.{module}"), function)(**json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
