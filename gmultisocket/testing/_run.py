"""Run checks without a test runner."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Any

from ..transport import MessageConnection, PacketConnection
from ._message import MessageTransportChecks
from ._stream import PacketTransportChecks, StreamTransportChecks
from ._transport import TransportChecks

__all__ = ["check_transport", "run_checks"]


def run_checks(checks: object) -> list[str]:
    """Run every check of an object and return their names. Blocks until all have ended.

    Raises:
        AssertionError: some checks failed; the text has the name and traceback of each.
    """
    names = [name for name in dir(checks) if name.startswith("test_")]
    failures = []
    for name in names:
        try:
            getattr(checks, name)()
        except Exception:
            failures.append(f"{name}:\n{traceback.format_exc()}")
    assert not failures, f"{len(failures)} of {len(names)} checks failed\n\n" + "\n".join(failures)
    return names


def check_transport(
    make_address: Callable[[], str],
    *,
    bad_addresses: tuple[str, ...] = (),
    dial_options: Mapping[str, Any] | None = None,
    listen_options: Mapping[str, Any] | None = None,
    limit: float = 10.0,
) -> list[str]:
    """Run all checks for a transport. Blocks for some seconds.

    Makes one connection to find out its kind, and then runs the checks for that kind.

    Args:
        make_address: returns an address that nobody listens at; it may be the same each time.
        bad_addresses, dial_options, listen_options, limit: as the attributes of :class:`TransportChecks`.

    Returns:
        The names of the checks.

    Raises:
        AssertionError: some checks failed; the text has the name and traceback of each.
    """
    attributes = {
        "make_address": lambda self: make_address(),
        "bad_addresses": bad_addresses,
        "dial_options": dial_options or {},
        "listen_options": listen_options or {},
        "limit": limit,
    }
    kind = _kind_of(type("Checks", (TransportChecks,), attributes)())
    return run_checks(type("Checks", (kind,), attributes)())


def _kind_of(checks: TransportChecks) -> type[TransportChecks]:
    with checks.bench() as bench:
        end, _ = bench.connect()
        if isinstance(end, MessageConnection):
            return MessageTransportChecks
        return PacketTransportChecks if isinstance(end, PacketConnection) else StreamTransportChecks
