"""Checks for transports whose connections are byte streams, and for transports that put packets on a stream.

They use the connections as a pipe does: ``send`` never waits, one greenlet may wait to read while another one waits to
write, and only ``close`` ends a wait.
"""

from __future__ import annotations

import random
from typing import ClassVar

import gevent

from ..errors import BadMessage
from ..transport import PacketCodec, PacketConnection, StreamConnection
from ._bench import attempt, fill, finish, never_switches, read_all
from ._transport import TransportChecks
from ._wait import wait_until

__all__ = ["PacketTransportChecks", "StreamTransportChecks"]

#: A check fails after this number of calls that should have waited, or should have filled the connection.
_MAX_CALLS = 1000


class StreamTransportChecks(TransportChecks):
    """Checks for a transport of :class:`~gmultisocket.transport.StreamConnection`; see :class:`TransportChecks`.

    Attributes:
        half_close: whether one direction of a connection can end while the other one stays open.
    """

    half_close: ClassVar[bool] = True

    # Sending

    def test_send_says_how_many_bytes_it_took(self) -> None:
        with self.bench() as bench:
            one, other = bench.connect_streams()
            for data in (b"x", b"hello", memoryview(b"a view")):
                with never_switches("send()"):
                    taken = one.send(data)
                assert isinstance(taken, int) and 1 <= taken <= len(data), f"send({bytes(data)!r}) returned {taken!r}"
                assert other.read_exactly(taken) == data[:taken], "the bytes that arrived are not those that were sent"

    def test_a_full_send_raises_blocking_io_error_at_once(self) -> None:
        with self.bench() as bench:
            one, other = bench.connect_streams()
            with never_switches("send() to a peer that does not read"):
                sent = fill(one)
            assert sent, "send() took no bytes"
            received = other.read_exactly(sent)
            assert received == bytes(sent), "the bytes that arrived are not those that were sent"

    def test_sendmsg_sends_several_buffers_in_order(self) -> None:
        with self.bench() as bench:
            one, other = bench.connect_streams()
            buffers: list[bytes | memoryview] = [b"%d," % number for number in range(63)]
            buffers.append(memoryview(b"end"))
            whole = b"".join(buffers)
            with never_switches("sendmsg()"):
                taken = one.sendmsg(buffers)
            assert isinstance(taken, int) and 1 <= taken <= len(whole), f"sendmsg() returned {taken!r}"
            assert other.read_exactly(taken) == whole[:taken], "the buffers arrived in another order"
            fill(one)
            with never_switches("sendmsg() to a peer that does not read"):
                outcome = self._sendmsg_until_full(one)
            assert isinstance(outcome, BlockingIOError), f"a full sendmsg() gave {outcome!r}"

    def _sendmsg_until_full(self, connection: StreamConnection) -> object:
        for _ in range(_MAX_CALLS):
            outcome = attempt(connection.sendmsg, [bytes(1 << 16), bytes(1 << 16)])
            if not isinstance(outcome, int):
                return outcome
        return outcome

    def test_wait_writable_ends_when_the_peer_reads(self) -> None:
        with self.bench() as bench:
            one, other = bench.connect_streams()
            sent = fill(one)
            sending = gevent.spawn(attempt, self._send_when_possible, one)
            # Buffers between the ends may take a little more before everything is full.
            gevent.sleep(0.01)
            other.read_exactly(sent)
            taken = finish(sending, self.limit, "wait_writable() did not end although the peer has read everything")
            assert isinstance(taken, int), f"sending failed: {taken!r}"

    def _send_when_possible(self, connection: StreamConnection) -> int:
        for _ in range(_MAX_CALLS):
            try:
                return connection.send(b"more")
            except BlockingIOError:
                connection.wait_writable()
        raise AssertionError(f"wait_writable() returned {_MAX_CALLS} times while nothing could be sent")

    def test_wait_writable_returns_where_nothing_is_in_the_way(self) -> None:
        with self.bench() as bench:
            one, _ = bench.connect_streams()
            waiting = gevent.spawn(attempt, one.wait_writable)
            outcome = finish(waiting, self.limit, "wait_writable() waits although send() can take bytes")
            assert outcome is None, f"wait_writable() gave {outcome!r}"

    def test_large_streams_go_both_ways_at_once(self) -> None:
        size = 4 << 20
        there, back = random.Random(1).randbytes(size), random.Random(2).randbytes(size)
        with self.bench() as bench:
            one, other = bench.connect_streams()
            writers = [gevent.spawn(one.write_all, there), gevent.spawn(other.write_all, back)]
            readers = [gevent.spawn(other.read_exactly, size), gevent.spawn(one.read_exactly, size)]
            for reader, expected in zip(readers, (there, back), strict=True):
                received = finish(reader, self.limit, f"{size} bytes did not arrive")
                assert received == expected, "bytes changed on the way, or their order did"
            gevent.joinall(writers, raise_error=True)

    def test_what_is_on_its_way_is_counted(self) -> None:
        with self.bench() as bench:
            one, other = bench.connect_streams()
            one.write_all(b"hello")
            other.read_exactly(5)
            wait_until(lambda: one.unacknowledged() == 0, self.limit, "unacknowledged() to be 0 when all was read")

    # Receiving

    def test_recv_returns_what_is_there_and_never_more_than_asked_for(self) -> None:
        with self.bench() as bench:
            one, other = bench.connect_streams()
            one.write_all(b"0123456789")
            first = other.recv(4)
            assert isinstance(first, bytes) and 1 <= len(first) <= 4, f"recv(4) returned {first!r}"
            rest = other.read_exactly(10 - len(first))
            assert first + rest == b"0123456789", "bytes were lost between two reads"
            one.write_all(b"short")
            assert other.recv(1 << 18), "recv() of more bytes than have arrived must return those that have"

    def test_recv_waits_without_holding_up_others(self) -> None:
        with self.bench() as bench:
            one, other = bench.connect_streams()
            reading = gevent.spawn(attempt, other.read_exactly, 4)
            gevent.sleep(0.01)
            assert not reading.ready(), f"recv() returned although nothing was sent: {reading.value!r}"
            one.write_all(b"ping")
            assert finish(reading, self.limit, "recv() did not return") == b"ping"

    def test_recv_into_reads_into_buffers_without_waiting(self) -> None:
        with self.bench() as bench:
            one, other = bench.connect_streams()
            if not other.reads_into:
                return
            first, second = bytearray(4), bytearray(100)
            outcome: object
            with never_switches("recv_into() with nothing to read"):
                outcome = attempt(other.recv_into, [memoryview(first), second])
            assert isinstance(outcome, BlockingIOError), f"recv_into() with nothing to read gave {outcome!r}"
            one.write_all(b"0123456789")
            waiting = gevent.spawn(attempt, other.wait_readable)
            outcome = finish(waiting, self.limit, "wait_readable() did not end although there are bytes to read")
            assert outcome is None, f"wait_readable() gave {outcome!r}"
            received = b""
            while len(received) < 10:
                size = other.recv_into([memoryview(first), second])
                assert 1 <= size <= 10 - len(received), f"recv_into() returned {size}"
                received += (bytes(first) + bytes(second))[:size]
            assert received == b"0123456789", "the buffers were filled in another order, or bytes were lost"
            one.write_all(b"and recv() goes on")
            assert other.read_exactly(18) == b"and recv() goes on", "recv() does not go on where recv_into() ended"
            one.close()
            other.wait_readable()
            assert other.recv_into([second]) == 0, "recv_into() at the end of the stream must return 0"
            other.close()
            for call in (lambda: other.recv_into([second]), other.wait_readable):
                outcome = finish(gevent.spawn(attempt, call), self.limit, "a closed connection is waited for")
                assert isinstance(outcome, OSError), f"reading after close() gave {outcome!r}"

    def test_recv_offered_returns_what_the_callback_does_not_take(self) -> None:
        with self.bench() as bench:
            one, other = bench.connect_streams()
            if not other.offers:
                return
            taken = b""

            def take(data: bytes) -> bool:
                nonlocal taken
                if b"-" in data or not data:
                    return False
                taken += data
                return True

            reading = gevent.spawn(attempt, other.recv_offered, 100, take)
            gevent.sleep(0.01)
            assert not reading.ready(), f"recv_offered() returned although nothing was sent: {reading.value!r}"
            one.write_all(b"one")
            wait_until(lambda: len(taken) == 3 or reading.ready(), timeout=self.limit)
            one.write_all(b"two")
            wait_until(lambda: len(taken) == 6 or reading.ready(), timeout=self.limit)
            assert taken == b"onetwo", f"the callback was offered {taken!r} of b'onetwo'"
            assert not reading.ready(), f"recv_offered() returned what the callback has taken: {reading.value!r}"
            one.write_all(b"three-")
            received = finish(reading, self.limit, "recv_offered() did not return what the callback did not take")
            assert isinstance(received, bytes), f"recv_offered() gave {received!r}"
            assert taken + received == b"onetwothree-", f"the rest of b'onetwothree-' is {received!r}, after {taken!r}"
            one.write_all(b"and recv() goes on")
            assert other.read_exactly(18) == b"and recv() goes on", "recv() does not go on where recv_offered() ended"
            reading = gevent.spawn(attempt, other.recv_offered, 100, take)
            gevent.sleep(0)
            one.close()
            received = finish(reading, self.limit, "recv_offered() hangs at the end of the stream")
            assert received == b"", f"recv_offered() at the end of the stream gave {received!r}"
            other.close()
            outcome = finish(gevent.spawn(attempt, other.recv_offered, 100, take), self.limit, "it is waited for")
            assert isinstance(outcome, OSError), f"recv_offered() after close() gave {outcome!r}"

    def test_a_reader_that_is_killed_loses_nothing(self) -> None:
        with self.bench() as bench:
            one, other = bench.connect_streams()
            for data in (b"first", b"second"):
                reading = gevent.spawn(attempt, other.recv, 100)
                gevent.sleep(0)
                reading.kill()
                one.write_all(data)
                received = finish(gevent.spawn(attempt, other.read_exactly, len(data)), self.limit, "recv() hangs")
                assert received == data, f"after a killed recv() {received!r} arrived instead of {data!r}"

    def test_the_end_of_the_stream_comes_after_its_last_byte(self) -> None:
        with self.bench() as bench:
            for one, other in (bench.connect_streams(), bench.connect_streams()[::-1]):
                one.write_all(b"last words")
                one.close()
                received = finish(gevent.spawn(attempt, read_all, other), self.limit, "the stream did not end")
                assert received == b"last words", f"before the end {received!r} arrived"
                assert other.recv(10) == b"", "recv() after the end of the stream must return b'' again"

    def test_one_side_can_end_while_the_other_goes_on(self) -> None:
        with self.bench() as bench:
            one, other = bench.connect_streams()
            one.write_all(b"question")
            one.shutdown_write()
            if not self.half_close:
                return
            received = finish(gevent.spawn(attempt, read_all, other), self.limit, "shutdown_write() ended nothing")
            assert received == b"question", f"before the end {received!r} arrived"
            other.write_all(b"answer")
            answer = finish(gevent.spawn(attempt, one.read_exactly, 6), self.limit, "the other side ended as well")
            assert answer == b"answer", f"the other side sent b'answer', and {answer!r} arrived"

    def test_sending_to_a_peer_that_has_gone_is_an_error(self) -> None:
        with self.bench() as bench:
            one, other = bench.connect_streams()
            other.close()
            outcome = finish(gevent.spawn(attempt, self._send_on, one), self.limit, "sending to nobody went on")
            assert isinstance(outcome, OSError), f"sending to a closed peer gave {outcome!r}"
            assert not isinstance(outcome, BlockingIOError), "send() to a closed peer must not raise BlockingIOError"

    def _send_on(self, connection: StreamConnection) -> None:
        while True:
            connection.write_all(b"anybody there?")
            gevent.sleep(0.001)

    # Closing

    def test_close_ends_a_waiting_recv(self) -> None:
        with self.bench() as bench:
            one, _ = bench.connect_streams()
            reading = gevent.spawn(attempt, one.recv, 100)
            gevent.sleep(0)
            one.close()
            outcome = finish(reading, self.limit, "close() did not end a recv() that was waiting")
            assert outcome == b"" or isinstance(outcome, OSError), f"recv() ended with {outcome!r}"

    def test_close_ends_a_waiting_writer(self) -> None:
        with self.bench() as bench:
            one, _ = bench.connect_streams()
            fill(one)
            sending = gevent.spawn(attempt, one.write_all, bytes(1 << 24))
            gevent.sleep(0.01)
            one.close()
            outcome = finish(sending, self.limit, "close() did not end a wait_writable()")
            assert isinstance(outcome, OSError), f"the writer ended with {outcome!r}"

    def test_nothing_can_be_done_after_close(self) -> None:
        with self.bench() as bench:
            one, _ = bench.connect_streams()
            one.close()
            # The event loop may close the descriptor in its next turn, after it has woken those who wait for it.
            gevent.sleep(0)
            outcome = finish(gevent.spawn(attempt, one.recv, 10), self.limit, "recv() after close() hangs")
            assert outcome == b"" or isinstance(outcome, OSError), f"recv() after close() gave {outcome!r}"
            outcome = attempt(one.send, b"x")
            assert isinstance(outcome, OSError), f"send() after close() gave {outcome!r}"
            waiting = gevent.spawn(attempt, one.wait_writable)
            outcome = finish(waiting, self.limit, "wait_writable() after close() hangs")
            assert outcome is None or isinstance(outcome, OSError), f"wait_writable() after close() gave {outcome!r}"
            one.shutdown_write()
            assert one.unacknowledged() == 0, "unacknowledged() of a closed connection must be 0"


class PacketTransportChecks(StreamTransportChecks):
    """Checks for a transport of :class:`~gmultisocket.transport.PacketConnection`; see :class:`TransportChecks`."""

    FRAMES: ClassVar[tuple[bytes, ...]] = (b"\x00" * 8, bytes(range(256)), b"\xff" * 70_000, b"one more frame")

    def _codecs(self, *ends: StreamConnection) -> list[PacketCodec]:
        codecs = []
        for end in ends:
            assert isinstance(end, PacketConnection), f"{type(end).__name__} is no PacketConnection"
            codecs.append(end.codec)
        return codecs

    def test_what_one_side_wraps_the_other_side_reads(self) -> None:
        with self.bench() as bench:
            for one, other in (bench.connect_streams(), bench.connect_streams()[::-1]):
                sender, receiver = self._codecs(one, other)
                packets = [sender.wrap(frame) for frame in self.FRAMES]
                received = attempt(receiver.feed, b"".join(packets))
                assert received == list(self.FRAMES), f"{len(packets)} packets were wrapped, and others came out"

    def test_packets_may_come_in_pieces_of_any_size(self) -> None:
        with self.bench() as bench:
            sender, receiver = self._codecs(*bench.connect_streams())
            data = b"".join(sender.wrap(frame) for frame in self.FRAMES[:2])
            received = attempt(lambda: [packet for byte in data for packet in receiver.feed(bytes([byte]))])
            assert received == list(self.FRAMES[:2]), f"byte by byte came {received!r}"

    def test_unwrap_undoes_wrap(self) -> None:
        with self.bench() as bench:
            for codec in self._codecs(*bench.connect_streams()):
                for frame in self.FRAMES:
                    assert codec.unwrap(codec.wrap(frame)) == frame, "unwrap(wrap(frame)) is not the frame"

    def test_codecs_with_the_same_key_make_the_same_packets(self) -> None:
        with self.bench() as bench:
            codecs = self._codecs(*bench.connect_streams(), *bench.connect_streams())
            for frame in self.FRAMES:
                packets: dict[str, bytes] = {}
                for codec in codecs:
                    if codec.key is not None:
                        packet = codec.wrap(frame)
                        same = packets.setdefault(codec.key, packet) == packet
                        assert same, f"two codecs with the key {codec.key!r} wrap a frame differently"

    def test_a_goodbye_ends_the_packet_protocol(self) -> None:
        with self.bench() as bench:
            sender, receiver = self._codecs(*bench.connect_streams())
            assert receiver.end() == "", f"end() is {receiver.end()!r} before anybody said goodbye"
            assert receiver.feed(sender.wrap(b"last") + sender.goodbye(None)) == [b"last"]
            assert isinstance(receiver.end(), str)
            assert isinstance(receiver.replies(), bytes)

    def test_bytes_that_are_no_packets_are_a_bad_message(self) -> None:
        rng = random.Random(3)
        with self.bench() as bench:
            for _ in range(20):
                _, codec = self._codecs(*bench.connect_streams())
                outcome = attempt(codec.feed, rng.randbytes(1000))
                assert isinstance(outcome, (list, BadMessage)), f"random bytes gave {outcome!r}"
