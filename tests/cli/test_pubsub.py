from __future__ import annotations

import json
from pathlib import Path

from gmultisocket import Pub, Sub
from gmultisocket.testing import wait_until
from tests.cli.command import PATIENCE, address_of, end, interrupt, read_line, run, start, write_line


def test_the_first_word_of_a_line_is_its_topic_unless_the_arguments_have_one(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/feed"
    with start("pub", "-l", address, "--lines") as pub, Sub() as sub:
        sub.subscribe("a.*")
        sub.dial(address_of(pub))
        write_line(pub, b"a.b 1 2")
        assert sub.recv(timeout=20) == ("a.b", b"1 2")
        write_line(pub, b"b.c 3")
        write_line(pub, b"a.c  4")
        assert sub.recv(timeout=20) == ("a.c", b" 4")
        write_line(pub, b"no-topic")
        out, err = end(pub, 1)
        assert out == "" and err == (
            "gmultisocket: a message has no topic: use --topic, or begin it with the topic and a space\n"
        )


def test_what_is_published_and_printed_can_be_published_again(tmp_path: Path) -> None:
    with (
        start("pub", "-l", f"ipc://{tmp_path}/second", "--split", "json") as second,
        start("sub", "-d", address_of(second), "-n", "2", "--topics") as last,
        start("pub", "-l", f"ipc://{tmp_path}/first", "--split", "json") as first,
        start("sub", "-d", address_of(first), "-n", "2", "--json", stdout=second.stdin) as between,
    ):
        second.stdin.close()
        first.stdin.write(b'{"content": "1", "topic": "a"}\n{"content": "2", "topic": "b.c"}\n')
        first.stdin.close()
        assert last.stdout.read() == b"a 1\nb.c 2\n"
        assert [process.wait(PATIENCE) for process in (first, between, second, last)] == [0, 0, 0, 0]


def test_a_file_is_published_without_a_loss_to_a_slow_sub(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    lines = [b"%d %s" % (number, b"x" * 500) for number in range(2000)]
    path.write_bytes(b"\n".join(lines))
    with Sub({"socket.recv_queue_size": 1}) as sub:
        sub.subscribe("t")
        address = sub.listen(f"ipc://{tmp_path}/feed").address
        with start("pub", "-q", "-d", address, "-T", "t", "--lines", "-F", str(path)) as pub:
            assert [sub.recv(timeout=20)[1] for _ in lines] == lines
            assert end(pub) == ("", "")


def test_a_sub_prints_what_matches_its_patterns(tmp_path: Path) -> None:
    with (
        Pub() as pub,
        start("sub", "-l", f"ipc://{tmp_path}/feed", "-s", "a", "-s", "b.>", "-n", "3", "--json") as sub,
    ):
        pub.dial(address_of(sub))
        pub.wait_subscribers("b.c", 1, 20)
        pub.wait_subscribers("a", 1, 20)
        for topic in ("a", "a.b", "b", "b.c", "c", "b.c.d"):
            pub.publish(topic, topic.encode())
        out, _ = end(sub)
    assert [json.loads(line) for line in out.splitlines()] == [
        {"content": topic, "topic": topic} for topic in ("a", "b.c", "b.c.d")
    ]


def test_a_late_subscriber_gets_what_is_retained(tmp_path: Path) -> None:
    arguments = ("pub", "-l", f"ipc://{tmp_path}/feed", "--peers", "0", "--retain", "-T", "state", "-i", "60", "on")
    with start(*arguments) as pub:
        address = address_of(pub)
        assert run("sub", "-d", address, "-n", "1")[0] == "on\n"
        assert interrupt(pub)[0] == 0


def test_a_refused_subscription_is_told(tmp_path: Path) -> None:
    with Pub(authorize=lambda subscriber, pattern: "not today") as pub:
        address = pub.listen(f"ipc://{tmp_path}/feed").address
        with start("sub", "-d", address, "-s", "a") as sub:
            read_line(sub.stderr)
            assert "not today" in read_line(sub.stderr)
            assert interrupt(sub)[0] == 0
        wait_until(lambda: not pub.pipes)
