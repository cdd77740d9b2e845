"""Several protocols share a WebSocket: each has pipes of its own, and none of them waits for another one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.pywsgi import WSGIServer
from websockets.frames import Opcode

from gmultisocket import Message, Pub, Rep, Req, Session, Socket, Sub, Switch
from gmultisocket.contrib.wsgi import mount
from gmultisocket.errors import AddressError, HandshakeFailed, OptionError, RequestRefused, SubscriptionRefused
from gmultisocket.protocol import PlainReceiver
from gmultisocket.protocol import session as session_module
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, Decoder, encode
from tests import addresses
from tests.cases import every_case
from tests.peers import calls_in_a_turn
from tests.transport.wspeers import RawPeer, frame, upgraded

LONG = 20.0


@pytest.fixture(params=["ws", "wss"])
def address(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    from tests import certificates

    if request.param == "wss":
        monkeypatch.setenv("SSL_CERT_FILE", certificates.write_authority(tmp_path)[certificates.TLS.cafile.name])
    return addresses.TRANSPORTS[request.param](tmp_path)


def upper(content: bytes) -> bytes:
    return content.upper()


@contextmanager
def serving(
    members: dict[str, Any], where: str = "ws://127.0.0.1:0", options: Any = None
) -> Iterator[tuple[str, Session]]:
    """Listen with a session of some protocols; all of it is closed at the end."""
    with ExitStack() as stack:
        session = stack.enter_context(Session(members, options))
        for member in members.values():
            stack.enter_context(member)
            if isinstance(member, Rep) and member._handler is not None:
                member.start()
        yield session.listen(where).address, session


class Peer:
    """A peer that may say anything over a session's WebSocket."""

    def __init__(self, raw: RawPeer) -> None:
        self.raw = raw
        self.decoder = Decoder(1)

    def put(self, packet: bytes) -> None:
        self.raw.send(frame(Opcode.BINARY, packet))

    def tell(self, value: object) -> None:
        self.put(b"\0" + json.dumps(value).encode())

    def say(self, channel: int, content: bytes, flags: int = 0) -> None:
        self.put(bytes([channel]) + encode(Message(flags=flags, content=content)))

    def subscribe(self, channel: int, pattern: bytes) -> None:
        self.say(channel, b"\1" + pattern, CONTROL)

    def hear(self) -> tuple[int, Any]:
        """Return a channel, and what has come there: a text, or the content of a message."""
        packet = self.raw.read_frame().data
        if packet[0]:
            (message,) = self.decoder.feed(packet[1:])
            return packet[0], message.content
        return 0, json.loads(packet[1:])


@contextmanager
def peer_of(address: str) -> Iterator[Peer]:
    with upgraded(address, "multisocket.session") as raw:
        yield Peer(raw)


def test_all_protocols_of_two_programs_share_one_websocket(address: str) -> None:
    pub, rep, plain = Pub(), Rep(upper), Socket()
    with serving({"events": pub, "rpc": rep, "plain": plain}, address) as (where, server):
        with Sub() as sub, Req() as req, Socket() as mine:
            with Session({"plain": mine, "rpc": req, "events": sub}) as client:
                client.dial(where)
                sub.subscribe("a.>", LONG)
                assert pub.publish("a.b", b"one") == 1
                assert sub.recv(LONG) == ("a.b", b"one")
                for size in (0, 1, 125, 126, 1000, 40_000, 100_000):
                    assert req.request(b"x" * size, LONG) == b"X" * size
                mine.send(b"hello", LONG)
                message = plain.recv_msg(LONG)
                plain.send_to(message.source, message.content + b" yourself")
                assert mine.recv(LONG) == b"hello yourself"
                (carrier,) = server.pipes.values()
                for sock in (pub, rep, plain):
                    (pipe,) = sock.pipes.values()
                    assert pipe.peer_address == carrier.peer_address
                    assert pipe.local_address == carrier.local_address
                    assert pipe.id != carrier.id
                assert len({pipe.id for sock in (sub, req, mine) for pipe in sock.pipes.values()}) == 3
            for sock in (sub, req, mine, pub, rep, plain):
                wait_until(lambda sock=sock: not sock.pipes)  # type: ignore[misc]
            assert server.counters.drops == {}


def test_a_dialed_session_comes_back_with_all_its_channels() -> None:
    pub, rep = Pub(), Rep(upper)
    with serving({"events": pub, "rpc": rep}) as (where, server), Sub() as sub, Req() as req:
        with Session({"events": sub, "rpc": req}, {"connector.dialer.min_reconnect_time": 0.01}) as client:
            client.dial(where)
            sub.subscribe("a", LONG)
            for number in range(3):
                (carrier,) = server.pipes.values()
                carrier.close()
                wait_until(lambda: not pub.pipes)
                pub.wait_subscribers("a", timeout=LONG)
                pub.publish("a", b"%d" % number)
                assert sub.recv(LONG) == ("a", b"%d" % number)
                assert req.request(b"again", LONG) == b"AGAIN"


def test_a_channel_that_was_closed_is_opened_again() -> None:
    pub, rep = Pub(), Rep(upper)
    with serving({"events": pub, "rpc": rep}) as (where, server), Sub() as sub, Req() as req:
        with Session({"events": sub, "rpc": req}) as client:
            client.dial(where)
            sub.subscribe("a", LONG)
            for side in (pub, sub):
                before = {*pub.pipes}
                (pipe,) = side.pipes.values()
                pipe.close("not any more")
                wait_until(lambda before=before: pub.pipes and not before & {*pub.pipes})  # type: ignore[misc]
                pub.wait_subscribers("a", timeout=LONG)
                pub.publish("a", b"x")
                assert sub.recv(LONG) == ("a", b"x")
            assert req.request(b"y", LONG) == b"Y"
            assert len(server.pipes) == len(client.pipes) == 1
            assert client.socket.dialers[0].reconnects == 0


def test_the_pause_before_a_channel_is_opened_again_grows_unless_it_was_open_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(session_module, "monotonic", lambda: clock[0])
    monkeypatch.setattr(session_module, "_PAUSE", 0.001)
    pub = Pub()
    with serving({"events": pub}) as (where, _), Sub() as sub, Session({"events": sub}) as client:
        client.dial(where)
        wait_until(lambda: sub.pipes)
        (channels,) = client._carriers.values()
        assert isinstance(channels, session_module._DialedChannels)
        pauses = []
        for seconds in (0.0, 1.0, 1.0, 1.1, 0.0):
            (pipe,) = sub.pipes.values()
            clock[0] += seconds
            pipe.close()
            wait_until(lambda before=pipe.id: [*sub.pipes] not in ([], [before]))  # type: ignore[misc]
            pauses.append(channels._opened[1])
        assert pauses == [(0.001, 0.0), (0.002, 1.0), (0.004, 2.0), (0.001, 3.1), (0.002, 3.1)]


def test_the_peer_is_told_which_channels_there_are_and_opens_those_that_it_wants() -> None:
    class Derived(Pub):
        pass

    with serving({"a": Derived(), "b": Rep(upper), "ü": Socket()}) as (where, session), peer_of(where) as peer:
        assert peer.hear() == (0, [
            {"channel": 1, "name": "a", "protocol": "pub"},
            {"channel": 2, "name": "b", "protocol": "rep"},
            {"channel": 3, "name": "ü", "protocol": "socket"},
        ])  # fmt: skip
        rep = session.channels["b"]
        assert not rep.pipes
        peer.tell({"open": 2})
        peer.say(2, b"1234hello")
        assert peer.hear() == (2, b"1234HELLO")
        assert not session.channels["a"].pipes
        peer.tell({"close": 2})
        assert peer.hear() == (0, {"close": 2})
        assert not rep.pipes
        peer.tell({"open": 2})
        peer.say(2, b"1234again")
        assert peer.hear() == (2, b"1234AGAIN")
        peer.tell({"ping": 7})
        assert peer.hear() == (0, {"pong": 7})


def test_a_channel_has_the_name_of_the_protocol_also_if_the_program_has_written_it() -> None:
    class Chat(PlainReceiver):
        def say(self, content: bytes) -> None:
            self.socket.send_all(content)

    class Orders(Pub):
        pass

    class Plain(Socket):
        pass

    chat = Chat()
    with serving({"chat": chat, "orders": Orders(), "plain": Plain()}) as (where, _), peer_of(where) as peer:
        _, channels = peer.hear()
        assert [channel["protocol"] for channel in channels] == ["chat", "pub", "socket"]
        with Chat() as mine, Session({"chat": mine}) as session:
            session.dial(where)
            mine.wait_pipes(1, LONG)
            mine.say(b"hello")
            assert chat.recv(LONG) == b"hello"


def test_what_makes_no_sense_is_dropped_and_counted_and_disturbs_nobody() -> None:
    nonsense = [
        b"", b"\0", b"\0{", b"\0[]", b"\0[1]", b"\0null", b"\0{}",
        b'\0{"open": true}', b'\0{"open": 0}', b'\0{"open": 4}',
        b'\0{"open": 2}', b'\0{"open": -1}', b'\0{"open": "1"}', b'\0{"close": 1}', b'\0{"close": 9}',
        b"\0" + b"[" * 10_000, b"\0\xff", b"\1" + encode(Message(content=b"x")), b"\xff",
        b'\0{"ping": ' + b"7" * 500 + b"}",
        b'\0{"ping": [1]}', b"\0" + b" " * 70_000 + b'{"open": 1}',
    ]  # fmt: skip
    with serving({"a": Socket(), "b": Rep(upper)}) as (where, session), peer_of(where) as peer:
        peer.hear()
        peer.tell({"open": 2})
        for packet in nonsense:
            peer.put(packet)
        peer.say(2, b"1234still here")
        assert peer.hear() == (2, b"1234STILL HERE")
        assert session.counters.drops == {"garbage": len(nonsense)}
        (carrier,) = session.pipes.values()
        assert carrier.counters.drops == session.counters.drops


def test_a_wrong_frame_closes_its_channel_and_no_other() -> None:
    good = encode(Message(content=b"x"))
    wrong = [b"", b"1234567", b"\3" + bytes(7), good + b"y", good[:-1]]
    plain = Socket()
    with serving({"plain": plain, "rpc": Rep(upper)}) as (where, _), peer_of(where) as peer:
        peer.hear()
        peer.tell({"open": 2})
        with every_case() as case:
            for packet in wrong:
                with case(packet):
                    peer.tell({"open": 1})
                    peer.put(b"\1" + packet)
                    peer.say(1, b"late")
                    channel, text = peer.hear()
                    assert (channel, text["close"]) == (0, 1)
                    assert text["reason"]
                    peer.tell({"close": 1})
                    peer.say(2, b"1234x")
                    assert peer.hear() == (2, b"1234X")
        assert not plain.counters.messages_received


def test_a_channel_that_nobody_receives_from_closes_and_the_others_go_on() -> None:
    lazy = Socket({"socket.recv_queue_size": 10})
    with serving({"lazy": lazy, "rpc": Rep(upper)}) as (where, session), peer_of(where) as peer:
        peer.hear()
        peer.tell({"open": 1})
        peer.tell({"open": 2})
        for number in range(10 + 64):
            peer.say(1, b"%d" % number)
        peer.say(2, b"1234x")
        assert peer.hear() == (2, b"1234X")
        assert [int(lazy.recv(LONG)) for _ in range(74)] == [*range(74)]
        for number in range(10 + 65):
            peer.say(1, b"%d" % number)
        channel, text = peer.hear()
        assert (channel, text["close"]) == (0, 1)
        assert "64 messages" in text["reason"]
        peer.say(2, b"1234y")
        assert peer.hear() == (2, b"1234Y")
        # What the receive queue had taken is received, the rest is counted.
        assert [int(lazy.recv(LONG)) for _ in range(10)] == [*range(10)]
        assert lazy.counters.drops == {"unread": 65}
        assert len(session.pipes) == 1


def test_bytes_are_limited_as_messages_are() -> None:
    lazy = Socket({"socket.recv_queue_size": 1})
    with serving({"lazy": lazy}) as (where, _), peer_of(where) as peer:
        peer.hear()
        peer.tell({"open": 1})
        for _ in range(1 + 2):
            peer.say(1, bytes(100_000))
        wait_until(lambda: lazy.counters.messages_received == 3)
        assert lazy.pipes
        peer.say(1, bytes(100_000))
        assert peer.hear()[1]["close"] == 1
        assert lazy.counters.drops == {"unread": 3}
        assert lazy.counters.bytes_received == 4 * len(encode(Message(content=bytes(100_000))))


def test_without_a_session_nobody_takes_what_is_on_channels() -> None:
    with Socket({"transport.ws.session": True}) as plain:
        with peer_of(plain.listen("ws://127.0.0.1:0/").address) as peer:
            peer.say(1, b"to nobody")
            wait_until(lambda: plain.counters.drops == {"garbage": 1})
            # Neither has a message a channel on which it could go.
            plain.send_all(b"to all")
            assert plain.counters.drops == {"garbage": 1, "flags": 1}


def test_what_a_peer_has_sent_before_it_leaves_is_received() -> None:
    lazy = Socket({"socket.recv_queue_size": 2})
    with serving({"lazy": lazy}) as (where, _):
        for ending in ("channel", "websocket"):
            with peer_of(where) as peer:
                peer.hear()
                peer.tell({"open": 1})
                for number in range(20):
                    peer.say(1, b"%d" % number)
                if ending == "channel":
                    peer.tell({"close": 1})
                    assert peer.hear() == (0, {"close": 1})
            assert [int(lazy.recv(LONG)) for _ in range(20)] == [*range(20)]
            wait_until(lambda: not lazy.pipes)
        assert lazy.counters.drops == {}


def test_what_nobody_receives_after_the_peer_has_left_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmultisocket.core.pipes.channelpipe.DRAIN_TIMEOUT", 0.01)
    lazy = Socket({"socket.recv_queue_size": 2})
    with serving({"lazy": lazy}) as (where, _):
        with peer_of(where) as peer:
            peer.hear()
            peer.tell({"open": 1})
            for number in range(20):
                peer.say(1, b"%d" % number)
            wait_until(lambda: lazy.counters.messages_received == 20)
        wait_until(lambda: not lazy.pipes)
        assert lazy.counters.drops == {"unread": 18}


def test_a_peer_that_sends_too_fast_on_a_channel_is_held_up_there() -> None:
    slow = Socket({"connector.pipe.max_message_rate": 20})
    with serving({"slow": slow, "rpc": Rep(upper)}) as (where, _), peer_of(where) as peer:
        peer.hear()
        peer.tell({"open": 1})
        peer.tell({"open": 2})
        for number in range(40):
            peer.say(1, b"%d" % number)
        peer.say(2, b"1234x")
        assert peer.hear() == (2, b"1234X")
        assert slow.counters.messages_received == 40
        assert len(slow._receiver.queue) < 40
        assert [int(slow.recv(LONG)) for _ in range(40)] == [*range(40)]
        for _ in range(200):
            peer.say(1, b"flood")
        assert peer.hear()[1]["close"] == 1


def test_a_channel_may_close_if_its_peer_sends_too_fast_and_that_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    strict = Socket({"connector.pipe.max_message_rate": 20, "connector.pipe.over_rate": "close"})
    with serving({"strict": strict, "rpc": Rep(upper)}) as (where, _), peer_of(where) as peer:
        peer.hear()
        peer.tell({"open": 1})
        peer.tell({"open": 2})
        for _ in range(40):
            peer.say(1, b"flood")
        channel, text = peer.hear()
        assert (channel, text["close"]) == (0, 1)
        wait_until(lambda: text["reason"] in caplog.text)
        peer.say(2, b"1234x")
        assert peer.hear() == (2, b"1234X")


def test_messages_of_two_channels_stay_whole_when_the_peer_reads_slowly() -> None:
    members = {f"m{number}": Socket({"socket.send_queue_size": 1000}) for number in range(3)}
    with serving(members) as (where, session), peer_of(where) as peer:
        peer.hear()
        for number in (1, 2, 3):
            peer.tell({"open": number})
            members[f"m{number - 1}"].wait_pipes(1, LONG)
        sizes = [10, 5_000, 30_000, 40_000, 120_000]
        expected: dict[int, list[bytes]] = {1: [], 2: [], 3: []}
        for turn in range(60):
            for number in expected:
                content = bytes([turn]) * sizes[(turn + number) % len(sizes)]
                expected[number].append(content)
                members[f"m{number - 1}"].send_all(content)
            if turn % 7 == 0:
                gevent.sleep(0)
        assert any(sock.pipes and [*sock.pipes.values()][0].queued for sock in members.values())
        peer.tell({"ping": "behind"})
        got: dict[int, list[bytes]] = {1: [], 2: [], 3: []}
        pongs = 0
        while sum(map(len, got.values())) < 180 or not pongs:
            channel, content = peer.hear()
            if channel:
                got[channel].append(content)
            else:
                pongs += content == {"pong": "behind"}
        assert got == expected
        assert pongs == 1
        assert session.counters.drops == {}


def test_a_full_channel_follows_the_policy_of_its_socket_and_the_others_theirs() -> None:
    pub = Pub({"socket.send_queue_size": 5})
    with serving({"events": pub, "rpc": Rep(upper)}) as (where, _), peer_of(where) as peer:
        peer.hear()
        peer.tell({"open": 1})
        peer.tell({"open": 2})
        peer.subscribe(1, b"a")
        pub.wait_subscribers("a", timeout=LONG)
        count = 0
        while not pub.counters.drops.get("overflow"):
            pub.publish("a", b"%08d" % count + bytes(100_000))
            count += 1
            gevent.sleep(0)
        assert pub.slowest(1) == [*pub.pipes.values()]
        assert pub.slowest(1)[0].unacknowledged > 0
        peer.say(2, b"1234x")
        heard = 0
        while (message := peer.hear()) != (2, b"1234X"):
            heard += message[0] == 1
        assert 0 < heard <= count
        assert len(pub.pipes) == 1


def test_authorize_and_presence_see_who_is_at_the_other_end_of_the_websocket() -> None:
    def may(subscriber: Any, pattern: str) -> object:
        return pattern.startswith(subscriber.identity["user"]) or "not yours"

    pub = Pub(authorize=may, presence_names=lambda subscriber: subscriber.identity["user"])
    options = {"transport.ws.listener.authorize": lambda request: {"user": request.headers["X-User"]}}
    with serving({"events": pub}, options=options) as (where, _), ExitStack() as stack:
        for name in ("ada", "bob"):
            sub = stack.enter_context(Sub())
            client = stack.enter_context(Session({"events": sub}))
            client.dial(where, {"transport.ws.headers": {"X-User": name}})
            sub.wait_pipes(1, LONG)
            sub.subscribe(f"{name}.>", LONG)
            with pytest.raises(SubscriptionRefused, match="not yours"):
                sub.subscribe("eve.>", LONG)
        assert pub.presence(">") == (2, ("ada", "bob"))
        assert pub.presence("ada.x") == (1, ("ada",))


def test_a_socket_that_takes_no_pipe_closes_the_channel_with_the_reason() -> None:
    one, strict, gone, other = Socket({"connector.pipe_limit": 1}), Socket(), Socket(), Socket()
    strict.set_negotiator(lambda negotiation: None)
    with other, serving({"one": one, "strict": strict, "gone": gone}) as (where, session), peer_of(where) as peer:
        gone.close()
        other.dial(one.listen("inproc://the-one").address)
        one.wait_pipes(1, LONG)
        peer.hear()
        with every_case() as case:
            for number, why in ((1, "pipe_limit"), (2, "negotiator"), (3, "closed")):
                with case(why):
                    peer.tell({"open": number})
                    channel, text = peer.hear()
                    assert (channel, text["close"]) == (0, number)
                    assert why in text["reason"]
                    peer.say(number, b"late")
                    peer.tell({"close": number})
        assert session.counters.drops == {}


def test_a_socket_that_closes_takes_its_channels_with_it_and_leaves_the_others() -> None:
    first, second = Socket(), Rep(upper)
    with serving({"first": first, "second": second}) as (where, session), peer_of(where) as peer:
        peer.hear()
        peer.tell({"open": 1})
        peer.tell({"open": 2})
        first.wait_pipes(1, LONG)
        first.send_all(b"the last words")
        first.close()
        assert peer.hear() == (1, b"the last words")
        assert peer.hear()[1]["close"] == 1
        peer.say(2, b"1234x")
        assert peer.hear() == (2, b"1234X")
        session.close()
        assert peer.raw.read_close().code == 1001
        assert not second.pipes
        assert not second.closed


def test_a_peer_that_reads_nothing_of_what_is_said_about_its_channels_is_closed() -> None:
    plain = Socket({"socket.send_queue_size": 1000})
    with serving({"plain": plain}) as (where, session), peer_of(where) as peer:
        peer.tell({"open": 1})
        plain.wait_pipes(1, LONG)
        (pipe,) = plain.pipes.values()
        while not pipe.queued:
            plain.send_all(bytes(100_000))
            gevent.sleep(0)
        reasons: list[str] = []
        session.on_pipe(lambda event: reasons.append(event.reason))
        ping = frame(Opcode.BINARY, b'\0{"ping": 1}')

        def flood() -> None:
            with suppress(ConnectionError):
                while session.pipes:
                    peer.raw.send(ping * 100)

        flooding = gevent.spawn(flood)
        wait_until(lambda: not session.pipes)
        flooding.kill()
        wait_until(lambda: reasons == ["the peer does not read what is said about its channels"])


def test_neither_side_takes_the_other_one_for_a_plain_one() -> None:
    with serving({"plain": Socket()}) as (where, session), Socket() as plain:
        with pytest.raises(RequestRefused, match="subprotocol") as refused:
            plain.dial(where)
        assert refused.value.status == 400
        assert not session.pipes
        with Socket() as other, Socket() as mine, Session({"plain": mine}) as client:
            listening = other.listen("ws://127.0.0.1:0").address
            with pytest.raises((HandshakeFailed, RequestRefused)):
                client.dial(listening)
            assert not other.pipes


def test_wrong_arguments_are_named() -> None:
    with Socket() as sock:
        with every_case() as case:
            for members, why in (
                ({}, "between 1 and 255 channels: not 0"),
                ({f"{number}": sock for number in range(256)}, "not 256"),
                ({"": sock}, "characters: not ''"),
                ({"x" * 129: sock}, "characters: not 'xxx"),
            ):
                with case(why), pytest.raises(ValueError, match=why):
                    Session(members)
        with Session({"plain": sock}) as session:
            for call in (session.listen, session.dial, session.connect):
                with pytest.raises(AddressError, match="a Session needs ws:// or wss://, not tcp://"):
                    call("tcp://127.0.0.1:0#listen" if call == session.connect else "tcp://127.0.0.1:0")
            with pytest.raises(OptionError):
                session.socket.set_option("transport.ws.session", False)
        with pytest.raises(OptionError):
            Session({"plain": sock}, {"transport.ws.session": False})


def test_the_longest_content_is_that_of_the_channel_which_allows_most() -> None:
    large, small = Socket({"connector.pipe.max_recv_content_length": 1 << 20}), Socket()
    with serving({"large": large, "small": small}) as (where, session), peer_of(where) as peer:
        peer.hear()
        peer.tell({"open": 1})
        peer.tell({"open": 2})
        peer.say(1, bytes(500_000))
        assert len(large.recv(LONG)) == 500_000
        peer.say(2, bytes(500_000))
        assert peer.hear()[1]["close"] == 2
        assert session.options.get("connector.pipe.max_recv_content_length") == 1 << 20
        peer.say(1, bytes(1_100_000))
        assert peer.raw.read_close().code == 1009
        with Socket({"connector.pipe.max_recv_content_length": 0}) as all_, Session({"a": all_, "b": small}) as other:
            assert other.options.get("connector.pipe.max_recv_content_length") == 0


def test_compressed_messages_that_come_together_are_all_taken() -> None:
    """A few bytes become so many that they are decompressed in several portions."""
    options = {"transport.ws.compress_over": 256}
    plain, mine = Socket(), Socket({"socket.send_queue_size": 100})
    with serving({"plain": plain, "rpc": Rep(upper)}, options=options) as (where, session):
        with mine, Req() as req, Session({"plain": mine, "rpc": req}, options) as client:
            client.dial(where)
            req.wait_pipes(1, LONG)
            for number in range(40):
                mine.send(bytes([number]) * 120_000, LONG)
            assert req.request(b"x" * 100_000, LONG) == b"X" * 100_000
            assert [plain.recv(LONG) for _ in range(40)] == [bytes([number]) * 120_000 for number in range(40)]
            (carrier,) = session.pipes.values()
            assert carrier.messages_received >= 41
            assert session.counters.drops == {}


def test_compressing_for_a_channel_counts_for_the_budget_of_its_own_socket() -> None:
    """A greenlet that sends long messages lets others run before it has sent a MiB of them; see test_wsdeflate.py."""
    sizes = {"socket.send_queue_size": 10_000}
    options = {"transport.ws.compress_over": 256}
    one, two, mine = Socket(sizes), Socket(sizes), Socket()
    content = json.dumps([{"symbol": "EURUSD", "bid": number} for number in range(500)]).encode()
    with serving({"one": one, "two": two}, options=options) as (where, _):
        with mine, Socket() as other, Session({"one": mine, "two": other}, options) as client:
            client.dial(where)
            for sock in (one, two):
                sock.wait_pipes(1, LONG)
            for sender in (one, two):
                sent = calls_in_a_turn(lambda number, to=sender: to.send_all(b"%d" % number + content))
                assert sent * len(content) < 1 << 18
                (pipe,) = sender.pipes.values()
                assert 0 < pipe.bytes_sent < sent * len(content) / 4


def test_a_publication_reaches_a_crowd_of_pages_by_their_channels() -> None:
    pub = Pub()
    with serving({"rpc": Rep(upper), "events": pub}) as (where, _), ExitStack() as stack:
        peers = [stack.enter_context(peer_of(where)) for _ in range(50)]
        for number, peer in enumerate(peers):
            peer.hear()
            peer.tell({"open": 2})
            peer.subscribe(2, b"a" if number % 2 else b"b")
        pub.wait_subscribers("a", 25, LONG)
        pub.wait_subscribers("b", 25, LONG)
        for turn in range(3):
            assert pub.publish("a", b"%d" % turn) == 25
            assert pub.publish("b", b"%d" % turn) == 25
        for number, peer in enumerate(peers):
            name = b"a" if number % 2 else b"b"
            heard = [peer.hear() for _ in range(5)]
            assert {(2, b"\x04"), (2, b"\x02" + name)} < {*heard}
            publications = [content for _, content in heard if content[:1] == b"\0"]
            assert publications == [b"\0\1" + name + b"%d" % turn for turn in range(3)]


def test_an_idle_carrier_is_kept_alive_and_a_dead_one_closes_all_channels() -> None:
    plain = Socket()
    options = {"transport.ws.ping_interval": 0.05, "transport.ws.ping_timeout": 0.1}
    with serving({"plain": plain}, options=options) as (where, session), peer_of(where) as peer:
        peer.tell({"open": 1})
        plain.wait_pipes(1, LONG)
        # It answers no ping.
        wait_until(lambda: not session.pipes and not plain.pipes)
        assert peer.raw.read_close().code == 1011


def test_a_request_knows_who_has_asked() -> None:
    rep = Rep()
    options = {"transport.ws.listener.authorize": lambda request: {"user": request.headers["X-User"]}}
    with serving({"rpc": rep}, options=options) as (where, _), Socket() as back, Socket() as front, Req() as behind:
        with Req() as req, Session({"rpc": req}) as client:
            client.dial(where, {"transport.ws.headers": {"X-User": "ada"}})
            req.wait_pipes(1, LONG)
            waiting = req.request_async(b"x")
            request = rep.recv(LONG)
            assert request.identity is not None
            assert request.identity["user"] == "ada"
            waiting.cancel()
        wait_until(lambda: request.identity is None)
        with Switch(back, front) as switch:
            back.dial(rep.listen("inproc://rpc-of-switch").address)
            behind.dial(front.listen("inproc://front-of-switch").address)
            switch.start()
            behind.request_async(b"y")
            assert rep.recv(LONG).identity is None


def test_a_protocol_can_be_mounted_as_it_is() -> None:
    with Rep(upper) as rep, Session({"rpc": rep}) as session, Rep(upper) as alone:
        for each in (rep, alone):
            each.start()
        server = WSGIServer(("127.0.0.1", 0), mount(session, "/ws", mount(alone, "/alone")), log=None, error_log=None)
        server.start()
        try:
            where = f"ws://127.0.0.1:{server.server_port}"
            with Req() as req, Session({"rpc": req}) as client, Req() as plain:
                client.dial(f"{where}/ws")
                plain.dial(f"{where}/alone")
                for each in (req, plain):
                    assert each.request(b"hello", LONG) == b"HELLO"
        finally:
            session.close()
            alone.close()
            server.stop()
