"""The JavaScript client, in Node, against the servers of this library and against one that may say anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gevent
import pytest
from gevent.event import AsyncResult
from gevent.pywsgi import WSGIServer
from gevent.queue import Queue
from websockets.frames import Close, Opcode
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from gmultisocket import Backplane, Pub, Rep, Session, Socket, Switch
from gmultisocket.contrib.servers import Upgrade
from gmultisocket.contrib.wsgi import mount, read_request
from gmultisocket.errors import RequestRefused
from gmultisocket.protocol import RemoteSub, jsoncodec
from gmultisocket.testing import wait_until
from tests.browser.agents import NODE, ROOT, Node
from tests.cases import every_case
from tests.faults.process import needs
from tests.transport.wspeers import frame

pytestmark = [needs(f"{NODE} --version"), pytest.mark.timeout(120)]

VECTORS = json.loads((ROOT / "tests/protocol/pubsub-vectors.json").read_text())


@contextmanager
def serving(options: Any = None, **members: Any) -> Iterator[str]:
    """Listen with a session of some protocols, and return the address."""
    with ExitStack() as stack:
        for member in members.values():
            stack.enter_context(member)
            if isinstance(member, Rep):
                member.start()
        session = stack.enter_context(Session(members, options))
        yield session.listen("ws://127.0.0.1:0/ws").address


def drop(sock: Any) -> None:
    """Close all pipes of a session or socket."""
    for pipe in [*sock.pipes.values()]:
        pipe.close("for the test")


def test_the_vectors_of_the_wire(js: Node) -> None:
    code = """
    const hex = text => Uint8Array.from(text.match(/../g) ?? [], pair => parseInt(pair, 16));
    const text = data => Array.from(data, byte => byte.toString(16).padStart(2, "0")).join("");
    return %s.map(({kind, content, ...fields}) => kind === "ask" ? text(encodeAsk(fields, fields.positions))
      : JSON.parse(JSON.stringify(decode(true, hex(content)), (key, value) => key === "body" ? text(value) : value)));
    """
    good = [vector for vector in VECTORS["good"] if vector["kind"] not in ("unsubscribe", "subscribe")]
    results = js.evaluate(code % json.dumps(good))
    flags = ("recovered", "gap", "first_meeting", "end")
    with every_case() as case:
        for vector, result in zip(good, results, strict=True):
            kind = vector["kind"]
            with case(vector["content"]):
                if kind == "ask":
                    assert result == vector["content"]
                    continue
                for name in ("pattern", "reason", "id", "epoch", "offset", "previous"):
                    assert result.get(name) == vector.get(name)
                if kind == "replay":
                    assert result["flags"] == sum(vector[name] << bit for bit, name in enumerate(flags))
                if kind == "positioned":
                    topic = result["topic"].encode()
                    assert f"{len(topic):04x}{topic.hex()}{result['body']}" == vector["publication"]
        # What only a Sub sends is nothing that a Sub reads.
        bad = [vector for vector in VECTORS["bad"] if vector["content"][:2] not in ("00", "01", "05")]
        assert bad
        results = js.evaluate(code % json.dumps([{"kind": "", **each} for each in bad]))
        for vector, result in zip(bad, results, strict=True):
            with case(vector["why"]):
                assert result is None


def test_topics_requests_and_messages_over_one_websocket(js: Node) -> None:
    pub, plain = Pub(), Socket()
    with serving(events=pub, rpc=Rep(bytes.upper), chat=plain) as address:
        pub.publish("state.ü", "☃".encode(), retain=True)
        js.evaluate(f"""
            const client = kept.make("{address}");
            await client.subscribe("state.>", message => kept.seen.push([message.topic, message.text()])).ready;
            kept.chat = client.channel("chat", message => kept.seen.push(["chat", message.json()]));
            await kept.chat.ready;
        """)
        pub.publish("state.a.b", b"live")
        pub.publish("other", b"not wanted")
        assert js.evaluate("return (await kept.client.request({a: 1})).json()") == {"A": 1}
        large = "return (await kept.client.request(new Uint8Array(100000).fill(97))).content.length"
        assert js.evaluate(large) == 100_000
        assert js.evaluate("return (await kept.client.request('')).content.length") == 0
        assert js.evaluate("return kept.chat.send([1, 2])") is True
        message = plain.recv_msg(20)
        assert message.content == b"[1,2]"
        plain.send_to(message.source, b'{"you": "too"}')
        js.evaluate("await kept.until(() => kept.seen.length === 3)")
        assert sorted(js.evaluate("return kept.seen")) == [
            ["chat", {"you": "too"}], ["state.a.b", "live"], ["state.ü", "☃"]
        ]  # fmt: skip
        names = [{"channel": 1, "name": "events", "protocol": "pub"}, {"channel": 2, "name": "rpc", "protocol": "rep"},
                 {"channel": 3, "name": "chat", "protocol": "socket"}]  # fmt: skip
        assert js.evaluate("return [kept.client.state, kept.events]") == ["open", [{"type": "open", "channels": names}]]


def test_values_of_a_program_are_json_in_a_page(js: Node) -> None:
    pub, pair = jsoncodec.Pub(), jsoncodec.Pair()
    with serving(events=pub, rpc=jsoncodec.Rep(sum), chat=pair) as address:
        pub.publish("state", {"a": [1, "ü"]}, retain=True)
        js.evaluate(f"""
            kept.make("{address}").subscribe("state", message => kept.seen.push(message.json()));
            await kept.until(() => kept.seen.length);
        """)
        assert js.evaluate("return kept.seen") == [{"a": [1, "ü"]}]
        assert js.evaluate("return (await kept.client.request([1, 2.5])).json()") == 3.5
        wrong = "return await kept.client.request('text').catch(error => error.message)"
        assert js.evaluate(wrong) == (
            "refused: the request is no JSON: Expecting value: line 1 column 1 (char 0): b'text'"
        )
        js.evaluate("""
            kept.chat = kept.client.channel("chat", message => kept.seen.push(message.json()));
            await kept.chat.ready;
            kept.chat.send({hello: null});
        """)
        assert pair.recv(20) == {"hello": None}
        pair.send([True], 20)
        js.evaluate("await kept.until(() => kept.seen.length === 2)")
        assert js.evaluate("return kept.seen[1]") == [True]


def test_only_what_a_page_uses_is_opened(js: Node) -> None:
    pub, rep = Pub(), Rep(bytes.upper)
    with serving(events=pub, rpc=rep) as address:
        js.evaluate(f'await kept.make("{address}").request("x")')
        assert len(rep.pipes) == 1
        assert not pub.pipes


@pytest.mark.parametrize("kind", ["pub", "rep", "socket"])
def test_a_server_without_a_session_is_one_channel(js: Node, kind: str) -> None:
    with {"pub": Pub, "rep": lambda: Rep(bytes.upper), "socket": Socket}[kind]() as server:
        address = server.listen("ws://127.0.0.1:0/").address
        if isinstance(server, Rep):
            server.start()
            assert js.evaluate(f'return (await kept.make("{address}").request("x")).text()') == "X"
        elif isinstance(server, Pub):
            js.evaluate(f'await kept.make("{address}").subscribe("a.*", m => kept.seen.push(m.text())).ready')
            server.publish("a.b", b"one")
            js.evaluate("await kept.until(() => kept.seen.length)")
        else:
            js.evaluate(f'const c = kept.make("{address}").channel(undefined, m => kept.seen.push(m.text()));'
                        "await c.ready; c.send('hello')")  # fmt: skip
            server.send_to(server.recv_msg(20).source, b"hello yourself")
            js.evaluate("await kept.until(() => kept.seen.length)")


def test_it_comes_back_with_its_subscriptions_and_the_present_values(js: Node) -> None:
    pub = Pub()
    with serving(events=pub) as address:
        pub.publish("a.state", b"old", retain=True)
        js.evaluate(f'kept.make("{address}").subscribe("a.>", m => kept.seen.push(m.text()))')
        js.evaluate("await kept.until(() => kept.seen.length === 1)")
        pub.publish("a.state", b"new", retain=True)
        js.evaluate("await kept.until(() => kept.seen.length === 2)")
        for number in range(3):
            before = {*pub.pipes}
            drop(pub)
            wait_until(lambda before=before: pub.pipes and not before & {*pub.pipes})  # type: ignore[misc]
            pub.wait_subscribers("a.x", timeout=20)
            pub.publish("a.x", b"%d" % number)
        js.evaluate("await kept.until(() => kept.seen.includes('2'))")
        seen = js.evaluate("return kept.seen")
        assert [each for each in seen if each not in ("old", "new")] == ["0", "1", "2"]
        assert js.evaluate("return kept.events.map(event => event.type)") == ["open"]


def test_a_lost_connection_is_told_and_made_again(js: Node) -> None:
    with Pub() as pub, Session({"events": pub}) as session:
        address = session.listen("ws://127.0.0.1:0/ws").address
        js.evaluate(f'kept.make("{address}").subscribe("a", m => kept.seen.push(m.text()))')
        for number in range(1, 4):
            pub.wait_subscribers("a", timeout=20)
            pub.publish("a", b"%d" % number)
            js.evaluate(f"await kept.until(() => kept.seen.length === {number})")
            drop(session)
            wait_until(lambda: not pub.pipes)
            js.evaluate(f"await kept.until(() => kept.events.filter(e => e.type === 'open').length === {number + 1})")
        closed = js.evaluate("return kept.events.filter(event => event.type === 'close')")
        assert [each["code"] for each in closed] == [1000] * 3
        assert all(0 < each["retry"] <= 50 for each in closed)


def test_pauses_grow_at_random_up_to_the_longest(js: Node) -> None:
    js.evaluate("""
        kept.make("ws://127.0.0.1:1/", {minDelay: 2, maxDelay: 32});
        await kept.until(() => kept.events.length === 9);
        kept.client.close();
    """)
    *events, last = js.evaluate("return kept.events.slice(0, 9).concat(kept.events.at(-1))")
    for number, event in enumerate(events):
        longest = min(32, 2 * 2**number)
        assert longest / 2 <= event["retry"] <= longest
    assert len({event["retry"] for event in events}) == len(events)
    assert (last["code"], last["retry"]) == (1000, None)


def test_the_url_may_be_a_function_that_is_asked_each_time(js: Node) -> None:
    tokens: list[str] = []

    def log_in(request: Any) -> None:
        tokens.append(request.query)
        if len(tokens) < 3:
            raise RequestRefused(401)

    with serving({"transport.ws.listener.authorize": log_in}, rpc=Rep(bytes.upper)) as address:
        http = address.replace("ws:", "http:")
        js.evaluate(f"""
            let number = 0;
            const url = async () => {{
              if (number === 1 && !kept.failed) {{ kept.failed = true; throw new Error("no token now"); }}
              return `{http}?token=${{number++}}`;
            }};
            await kept.make(url).request("x");
        """)
        assert tokens == ["token=0", "token=1", "token=2"]
        assert "no token now" in str(js.evaluate("return kept.events.map(event => event.reason)"))


@pytest.mark.parametrize(("code", "retried"), [(4401, False), (4242, True), (None, True)])
def test_a_page_sees_the_code_by_which_any_plane_disconnects_it(js: Node, code: int | None, retried: bool) -> None:
    log_in = {"transport.ws.listener.authorize": lambda request: {"user": "ann"}}
    with Backplane("memory://pages") as one, Backplane("memory://pages") as other:
        with serving(log_in, pub=one.pub()) as address:
            js.evaluate(f'await kept.make("{address}").subscribe("a", m => kept.seen.push(m.text())).ready')
            wait_until(lambda: one.healthy)
            other.disconnect({"user": "ann"}, "your session has ended", code=code)
            js.evaluate('await kept.until(() => kept.events.some(event => event.type === "close"))')
            event = next(each for each in js.evaluate("return kept.events") if each["type"] == "close")
            assert event["code"] == (code or 1000)
            assert event["reason"] == ("your session has ended" if code else "")
            assert (event["retry"] is not None) is retried
            if retried:
                js.evaluate("await kept.client.subscribe('a').ready")
            else:
                assert {"type": "refused", "code": code, "reason": event["reason"]} in js.evaluate("return kept.events")


@pytest.mark.parametrize("code", [4401, 4403])
def test_a_refusal_by_code_is_not_tried_again_until_the_page_says_so(js: Node, code: int) -> None:
    refusals = Queue[int]()

    class Refusing:
        """Closes each WebSocket with a code."""

        def __call__(self, environ: Any, start_response: Any) -> Any:
            upgrade = Upgrade(environ, start_response)
            upgrade.accept(ServerProtocol(subprotocols=[Subprotocol("multisocket.session")]).accept(read_request(environ)))
            upgrade.stream.write_all(frame(Opcode.CLOSE, Close(code, "no").serialize(), masked=False))
            refusals.put(code)
            upgrade.stream.close()
            return upgrade.result()

    server = WSGIServer(("127.0.0.1", 0), Refusing(), log=None, error_log=None)
    server.start()
    try:
        js.evaluate(f'kept.make("ws://127.0.0.1:{server.server_port}/")')
        js.evaluate("await kept.until(() => kept.events.length === 2)")
        assert js.evaluate("return kept.events") == [
            {"type": "close", "code": code, "reason": "no", "retry": None},
            {"type": "refused", "code": code, "reason": "no"},
        ]
        assert js.evaluate("return kept.client.state") == "closed"
        js.evaluate("kept.client.connect(); await kept.until(() => kept.events.length === 4)")
        assert len(refusals) == 2
    finally:
        server.stop()


@pytest.mark.parametrize("options", ["{}", "{recover: false}"])
@pytest.mark.parametrize("first", ["", "feeds[0].close();"])
@pytest.mark.parametrize("allowed", [True, False])
def test_one_that_subscribes_again_while_it_is_decided_gets_the_answer_to_that(
    js: Node, allowed: bool, first: str, options: str
) -> None:
    decisions: list[AsyncResult[bool]] = []

    def authorize(subscriber: RemoteSub, pattern: str) -> bool | str:
        decisions.append(AsyncResult())
        return decisions[-1].get(timeout=20) or "not yours"

    with serving(pub=Pub(authorize=authorize)) as address:
        js.evaluate(f'kept.feeds = [kept.make("{address}").subscribe("mine", () => {{}}, {options})]')
        wait_until(lambda: len(decisions) == 1)
        js.evaluate(f"""
            const {{feeds, client}} = kept;
            {first} feeds.push(client.subscribe("mine", () => {{}}, {options}));
            kept.outcome = feeds[1].ready.then(() => "allowed", error => error.message);
        """)
        wait_until(lambda: len(decisions) == 2)
        for decision in decisions:
            decision.set(allowed)
        assert js.evaluate("return await kept.outcome") == ("allowed" if allowed else "refused: not yours")
        refused = js.evaluate("return kept.events.filter(event => event.type === 'refused').map(event => event.reason)")
        assert set(refused) == (set() if allowed else {"not yours"})


def test_a_refused_subscription_says_why_and_is_asked_again_after_a_reconnect(js: Node) -> None:
    allowed: list[str] = []
    pub = Pub(authorize=lambda subscriber, pattern: pattern in allowed or "not yours")
    with serving(events=pub) as address:
        assert js.evaluate(f"""
            const mine = kept.mine = kept.make("{address}").subscribe("mine", m => kept.seen.push(m.text()));
            try {{ await mine.ready; }} catch (error) {{ return [error.name, error.kind, error.message]; }}
        """) == ["RequestError", "refused", "refused: not yours"]  # fmt: skip
        assert js.evaluate("return kept.events.at(-1)") == {"type": "refused", "pattern": "mine", "reason": "not yours"}
        allowed.append("mine")
        drop(pub)
        pub.wait_subscribers("mine", timeout=20)
        pub.publish("mine", b"at last")
        js.evaluate("await kept.until(() => kept.seen.length)")


def test_requests_fail_by_the_kind_of_what_went_wrong(js: Node) -> None:
    waiting = Queue[Any]()

    def handle(content: bytes) -> Any:
        if content == b"fail":
            raise ValueError("a secret of the server")
        if content == b"wait":
            waiting.put(content)
            gevent.sleep(60)
        return content

    fail = "return await kept.client.request(%s).then(() => 0, error => [error.kind, error.message])"
    with Rep(handle, concurrency=10) as rep, Session({"rpc": rep}) as session:
        rep.start()
        address = session.listen("ws://127.0.0.1:0/ws").address
        js.evaluate(f'await kept.make("{address}").request("")')
        assert js.evaluate(fail % "'fail'") == ["refused", "refused"]
        assert js.evaluate(fail % "'wait', {timeout: 10}") == ["timeout", "timeout"]
        assert js.evaluate(fail % "'wait', {signal: AbortSignal.abort()}") == ["aborted", "aborted"]
        assert js.evaluate("""
            const controller = new AbortController(), {signal} = controller;
            const request = kept.client.request("wait", {signal});
            controller.abort();
            return await request.catch(error => error.kind);
        """) == "aborted"  # fmt: skip
        assert js.evaluate(fail % "'x', {channel: 'no'}")[0] == "unsupported"
        assert js.evaluate("return await kept.client.subscribe('a').ready.catch(error => error.kind)") == "unsupported"
        asked = gevent.spawn(js.evaluate, fail % "'wait'")
        for _ in range(3):
            assert waiting.get(timeout=20) == b"wait"
        drop(session)
        assert asked.get(timeout=20)[0] == "gone"
        session.close()
        assert js.evaluate(fail % "'x', {timeout: 20}")[0] == "offline"
        js.evaluate("kept.client.close()")
        assert js.evaluate(fail % "'x'") == ["offline", "offline"]
        assert js.evaluate("return kept.client.dropped") == 1


def test_what_waits_for_a_connection_is_bounded_and_is_sent_with_it(js: Node) -> None:
    with Rep(bytes.upper) as rep, Session({"rpc": rep}) as session:
        rep.start()
        address = session.listen("ws://127.0.0.1:0/ws").address
        answers = js.evaluate(f"""
            const client = kept.make("{address}");
            return await Promise.all(Array.from({{length: 70}}, (_, number) =>
              client.request(`${{number}}`).then(answer => answer.text(), error => error.kind)));
        """)
        assert answers == [*map(str, range(64)), *["offline"] * 6]
        assert js.evaluate("return kept.client.dropped") == 6


def test_what_a_channel_cannot_send_is_counted_once(js: Node) -> None:
    with serving(chat=Socket()) as address:
        assert js.evaluate(f"""
            const client = kept.make("{address}", {{buffer: -1}}), channel = client.channel("chat");
            const early = [channel.send("not connected"), client.dropped];
            await channel.ready;
            const full = [channel.send("the buffer is full"), client.dropped];
            client.close();
            return [early, full, [channel.send("closed"), client.dropped]];
        """) == [[False, 1], [False, 2], [False, 3]]  # fmt: skip


def test_a_page_does_not_pile_up_requests_at_a_server_that_works_on_one_at_a_time(js: Node) -> None:
    most = 0

    def handle(content: bytes) -> bytes:
        nonlocal most
        most = max(most, rep.counters.messages_received - rep.counters.messages_sent)
        gevent.sleep(0)
        return content

    rep = Rep(handle, {"socket.recv_queue_size": 1})
    with serving(rpc=rep) as address:
        assert js.evaluate(f"""
            const client = kept.make("{address}");
            await client.request("");
            const answers = await Promise.all(Array.from({{length: 1000}}, (_, n) => client.request(`${{n}}`)));
            return answers.every((answer, n) => answer.text() === `${{n}}`);
        """)  # fmt: skip
        assert 1 < most <= 32


def test_messages_can_be_iterated_over_and_are_bounded(js: Node) -> None:
    pub = Pub()
    with serving(events=pub) as address:
        pub.publish("a", b"kept", retain=True)
        js.evaluate(f"""
            kept.feed = kept.make("{address}").subscribe("a");
            await kept.feed.ready;
            kept.reading = (async () => {{ for await (const message of kept.feed) kept.seen.push(message.text()); }})();
        """)
        for number in range(5):
            pub.publish("a", b"%d" % number)
        js.evaluate("await kept.until(() => kept.seen.length === 6); kept.feed.close(); await kept.reading")
        assert js.evaluate("return kept.seen") == ["kept", *map(str, range(5))]
        wait_until(lambda: not pub.subscriptions)
        js.evaluate("""
            kept.other = kept.client.subscribe("*", message => { kept.last = message.text(); });
            kept.feed = kept.client.subscribe("b");
            await Promise.all([kept.other.ready, kept.feed.ready]);
        """)
        for number in range(2000):
            pub.publish("b", b"%d" % number, timeout=20)
            if number % 100 == 0:
                gevent.sleep(0.001)
        pub.publish("b", b"end")
        # Nothing is read before all of it is there.
        assert js.evaluate("""
            await kept.until(() => kept.last === "end");
            kept.other.close();
            const got = [];
            for await (const message of kept.feed) { got.push(message.text()); if (got.at(-1) === "end") break; }
            const told = kept.events.some(({type, reason}) => type === "gap" && reason === "overflow");
            return [got.length <= 1024, got.at(-2), told];
        """) == [True, "1999", True]  # fmt: skip
        wait_until(lambda: not pub.subscriptions)


#: Loops over ``kept.feed`` that write down what they get, and that they have ended.
_LOOPS = """
kept.loop = async name => {
  for await (const message of kept.feed) { kept.seen.push([name, message.text()]); await kept.gates?.[name]; }
  kept.seen.push([name, "ended"]);
};
"""


def start_loops(js: Node, address: str, names: list[str]) -> None:
    """Subscribe, and start loops with some names over the subscription."""
    js.evaluate(f"""
        {_LOOPS}
        kept.feed = kept.make("{address}").subscribe("a");
        kept.reading = {names}.map(kept.loop);
        await kept.feed.ready;
    """)


def test_loops_over_one_subscription_share_its_messages_in_the_order_in_which_they_wait(js: Node) -> None:
    pub = Pub()
    with serving(events=pub) as address:
        start_loops(js, address, ["x", "y", "z"])
        for number in range(7):
            pub.publish("a", b"%d" % number)
            js.evaluate(f"await kept.until(() => kept.seen.length === {number + 1})")
        assert js.evaluate("return kept.seen") == [["xyz"[number % 3], f"{number}"] for number in range(7)]
        js.evaluate("kept.feed.close(); await Promise.all(kept.reading)")
        assert sorted(js.evaluate("return kept.seen.slice(7)")) == [[name, "ended"] for name in "xyz"]
        wait_until(lambda: not pub.subscriptions)


def test_loops_over_one_subscription_that_cannot_keep_up_get_each_message_once(js: Node) -> None:
    pub = Pub()
    with serving(events=pub) as address:
        start_loops(js, address, ["x", "y"])
        for number in range(500):
            pub.publish("a", b"%d" % number, timeout=20)
        js.evaluate("await kept.until(() => kept.seen.length === 500)")
        seen = js.evaluate("return kept.seen")
        assert sorted(int(text) for _, text in seen) == [*range(500)]
        for name in ("x", "y"):
            own = [int(text) for each, text in seen if each == name]
            assert own == sorted(own)


def test_a_message_goes_to_the_loop_that_waits_and_not_to_one_that_comes_at_the_same_moment(js: Node) -> None:
    pub = Pub()
    with serving(events=pub) as address:
        js.evaluate(f"""
            {_LOOPS}
            kept.gates = {{x: new Promise(resolve => {{ kept.open = resolve; }})}};
            const client = kept.make("{address}");
            // It gets each message first, and lets the loop x go on with the second one.
            client.subscribe("a", message => message.text() === "2" && kept.open());
            kept.feed = client.subscribe("a");
            kept.reading = ["x", "y"].map(kept.loop);
            await kept.feed.ready;
        """)
        pub.publish("a", b"1")
        js.evaluate("await kept.until(() => kept.seen.length === 1)")
        pub.publish("a", b"2")
        js.evaluate("await kept.until(() => kept.seen.length === 2)")
        assert js.evaluate("return kept.seen") == [["x", "1"], ["y", "2"]]


@pytest.mark.parametrize("server", [Pub, Socket])
def test_a_loop_that_is_left_ends_the_others_and_what_is_kept_is_read_first(js: Node, server: Any) -> None:
    member = server()
    with serving(events=member) as address:
        make = "subscribe('a')" if server is Pub else "channel()"
        js.evaluate(f"""
            {_LOOPS}
            kept.feed = kept.make("{address}").{make};
            kept.reading = ["x", "y"].map(kept.loop);
            await kept.feed.ready;
            // It waits behind the others, for the third message.
            kept.left = (async () => {{ for await (const message of kept.feed) return message.text(); }})();
        """)
        if server is Socket:
            js.evaluate("kept.feed.send('hello')")
            source = member.recv_msg(20).source
        for number in range(3):
            member.publish("a", b"%d" % number) if server is Pub else member.send_to(source, b"%d" % number)
        assert js.evaluate("await Promise.all(kept.reading); return await kept.left") == "2"
        seen = js.evaluate("return kept.seen")
        assert seen[:2] == [["x", "0"], ["y", "1"]] and sorted(seen[2:]) == [["x", "ended"], ["y", "ended"]]


def test_two_subscriptions_to_a_pattern_share_it_and_both_get_the_present_values(js: Node) -> None:
    pub = Pub()
    with serving(events=pub) as address:
        pub.publish("a", b"kept", retain=True)
        js.evaluate(f"""
            const client = kept.make("{address}");
            kept.one = client.subscribe("a", m => kept.seen.push("1 " + m.text()));
            await kept.one.ready;
            await kept.until(() => kept.seen.length);
            kept.two = client.subscribe("a", m => kept.seen.push("2 " + m.text()));
            await kept.two.ready;
            await kept.until(() => kept.seen.includes("2 kept"));
            kept.seen = [];
        """)
        pub.wait_subscribers("a", timeout=20)
        pub.publish("a", b"x")
        js.evaluate("await kept.until(() => kept.seen.length === 2); kept.one.close()")
        assert js.evaluate("return kept.seen") == ["1 x", "2 x"]
        pub.publish("a", b"y")
        js.evaluate("await kept.until(() => kept.seen.length === 3); kept.two.close()")
        wait_until(lambda: not pub.subscriptions)


def test_wildcards_match_as_they_do_at_the_publisher(js: Node) -> None:
    patterns = ["a", "a.b", "*", "a.*", "a.>", ">", "*.b", "a.*.c", "*.*", "*.>", "b.>"]
    topics = ["a", "a.b", "a.b.c", "a.c", "b", "b.b.c", "x.y.z.w"]
    from gmultisocket.protocol.subscriptions import matches

    pub = Pub()
    with serving(events=pub) as address:
        js.evaluate(f"""
            const client = kept.make("{address}");
            await Promise.all({json.dumps(patterns)}.map(pattern =>
              client.subscribe(pattern, m => kept.seen.push([pattern, m.topic])).ready));
        """)
        for topic in [*topics, "end"]:
            pub.publish(topic, b"")
        js.evaluate("await kept.until(() => kept.seen.some(([, topic]) => topic === 'end'))")
        seen = [each for each in js.evaluate("return kept.seen") if each[1] != "end"]
        expected = [[pattern, topic] for pattern in patterns for topic in topics if matches(pattern, topic)]
        assert sorted(seen) == sorted(expected)
        wrong = ["", ".", "a.", ".a", "a..b", "a*", "*a", ">.a", "a.>.b", "a>"]
        assert js.evaluate(f"""return {json.dumps(wrong)}.filter(pattern => {{
            try {{ kept.client.subscribe(pattern); return true; }}
            catch (error) {{ return !(error instanceof TypeError); }}
        }})""") == []  # fmt: skip


def test_ten_thousand_patterns_come_back_after_a_reconnect(js: Node) -> None:
    pub = Pub({"protocol.pubsub.max_patterns": 20_000})
    with serving(events=pub) as address:
        js.evaluate(f"""
            const client = kept.make("{address}");
            for (let n = 0; n < 10000; n++) client.subscribe(`t.${{n}}`, m => kept.seen.push(m.text()));
        """)
        for turn in range(2):
            wait_until(lambda: pub.subscriptions == 10_000, 30)
            for number in (0, 1, 5000, 9999):
                assert pub.publish(f"t.{number}", b"%d" % number) == 1
            js.evaluate(f"await kept.until(() => kept.seen.length === {4 * (turn + 1)})")
            drop(pub)
            wait_until(lambda: not pub.subscriptions)


def test_a_handler_that_fails_disturbs_no_other(js: Node) -> None:
    pub = Pub()
    with serving(events=pub) as address:
        js.evaluate(f"""
            globalThis.reportError = error => kept.seen.push(error.message);
            const client = kept.make("{address}");
            client.subscribe("a", () => {{ throw new Error("mine"); }});
            await client.subscribe("*", message => kept.seen.push(message.text())).ready;
        """)
        pub.publish("a", b"x")
        js.evaluate("await kept.until(() => kept.seen.length === 2)")
        assert sorted(js.evaluate("return kept.seen")) == ["mine", "x"]


def test_a_publisher_behind_a_switch_that_starts_later_learns_who_is_there(js: Node) -> None:
    with Socket() as back, Socket() as front, Pub() as pub, Switch(back, front) as switch:
        switch.start()
        inner = back.listen("tcp://127.0.0.1:0").address
        address = front.listen("ws://127.0.0.1:0/").address
        js.evaluate(f'kept.make("{address}").subscribe("a", m => kept.seen.push(m.text()))')
        front.wait_pipes(1, 20)
        pub.dial(inner)
        pub.wait_subscribers("a", timeout=20)
        pub.publish("a", b"through the switch")
        js.evaluate("await kept.until(() => kept.seen.length)")


def test_every_publisher_behind_a_switch_learns_of_a_subscription_and_of_its_end(js: Node) -> None:
    with Socket() as back, Socket() as front, Pub() as one, Pub() as other, Switch(back, front) as switch:
        switch.start()
        inner = back.listen("tcp://127.0.0.1:0").address
        for pub in (one, other):
            pub.dial(inner)
        back.wait_pipes(2, 20)
        address = front.listen("ws://127.0.0.1:0/").address
        js.evaluate(f'kept.make("{address}")')
        for _ in range(2):
            js.evaluate('kept.one = kept.client.subscribe("a", m => kept.seen.push(m.text()))')
            for pub in (one, other):
                pub.wait_subscribers("a", timeout=20)
                pub.publish("a", b"")
            js.evaluate("await kept.until(() => kept.seen.length === 2); kept.one.close(); kept.seen = []")
            wait_until(lambda: not one.subscriptions and not other.subscriptions, 20)


def test_random_frames_break_nothing(js: Node) -> None:
    import random

    generator = random.Random(7)
    with Socket({"connector.pipe.raw": True}) as liar:
        # A raw pipe sends whatever the program says as a WebSocket message.
        address = liar.listen("ws://127.0.0.1:0/").address
        js.evaluate(f"""
            kept.errors = []; process.on("uncaughtException", kept.note = error => kept.errors.push(error.stack));
            const client = kept.make("{address}");
            client.subscribe(">", m => kept.seen.push(m.topic));
            client.request("x").catch(() => {{}});
        """)
        source = liar.recv_msg(20).source
        while liar.queued:
            liar.recv_msg(20)
        for _ in range(2000):
            size = generator.choice([0, 1, 7, 8, 9, 12, 30, 60])
            frame = bytearray(generator.randbytes(size))
            if size >= 12 and generator.random() < 0.9:
                flags, distance = generator.choice([0, 1, 2, 4, 6, 32, 33, 34]), generator.choice([0, 0, 0, 1])
                frame[:4] = bytes([flags, 16, 0, distance])
                frame[4:8] = (size - 8 - 4 * frame[3]).to_bytes(4, "big") if frame[3] < 2 else bytes(4)
                frame[8 + 4 * frame[3] : 9 + 4 * frame[3]] = bytes([generator.choice([0, 2, 3, 4, 5, 6, 7, 16])])
            if frame:
                liar.send_to(source, bytes(frame))
        liar.send_to(source, bytes([0, 16, 0, 0, 0, 0, 0, 5]) + b"\0\3end")
        js.evaluate("await kept.until(() => kept.seen.includes('end'))")
        js.evaluate("process.off('uncaughtException', kept.note)")
        assert js.evaluate("return kept.errors") == []


def test_a_mount_serves_a_client_beside_the_application(js: Node) -> None:
    with Rep(bytes.upper) as rep:
        rep.start()
        made: list[Session] = []

        def make() -> Session:
            made.append(Session({"rpc": rep}))
            return made[0]

        server = WSGIServer(("127.0.0.1", 0), mount(make, "/ws"), log=None, error_log=None)
        server.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/ws"
            assert js.evaluate(f'return (await kept.make("{url}").request("x")).text()') == "X"
        finally:
            made[0].close()
            server.stop()
