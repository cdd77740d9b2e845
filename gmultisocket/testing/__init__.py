"""Tools to test programs that use gmultisocket, and transports and protocols that you write.

* :func:`wait_until` waits for a condition.
* :class:`FakeStream` and :class:`FakeTransport` replace a network by a script.
* :class:`StreamTransportChecks`, :class:`PacketTransportChecks` and :class:`MessageTransportChecks` are test classes
  to subclass for a transport; :func:`check_transport` runs them without a test runner.
* :class:`ProtocolChecks` is the same for a protocol; ``gmultisocket.testing.protocols`` has the checks of the
  library's own protocols.
* ``gmultisocket.testing.engines`` has the checks of engines of a Backplane, which run with their real servers.
* :func:`nothing_left` checks that a piece of code leaves no descriptor open and no greenlet running.

Nothing in the library imports this package. Its checks raise ``AssertionError`` and work with any test runner.
"""

from __future__ import annotations

from ._bench import Bench, nothing_left
from ._fakes import FakeStream, FakeTransport
from ._message import MessageTransportChecks
from ._protocol import ProtocolChecks
from ._run import check_transport, run_checks
from ._stream import PacketTransportChecks, StreamTransportChecks
from ._transport import TransportChecks
from ._wait import wait_until

__all__ = [
    "Bench",
    "FakeStream",
    "FakeTransport",
    "MessageTransportChecks",
    "PacketTransportChecks",
    "ProtocolChecks",
    "StreamTransportChecks",
    "TransportChecks",
    "check_transport",
    "nothing_left",
    "run_checks",
    "wait_until",
]
