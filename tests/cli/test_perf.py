from __future__ import annotations

import re
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from gmultisocket.cli.perf import percentiles
from tests.cli.command import address_of, end, read_line, run, start

NUMBER = r"\d+(\.\d+)?"
PERCENTILES = rf"percentiles: 50% {NUMBER}, 90% {NUMBER}, 99% {NUMBER}, 99.9% {NUMBER}, max {NUMBER} \[us\]"


def test_percentiles_are_of_the_sorted_values() -> None:
    assert percentiles([float(value) for value in range(1000, 0, -1)], 0) == (
        "50% 501, 90% 901, 99% 991, 99.9% 1000, max 1000"
    )
    assert percentiles([2.0]) == "50% 2.0, 90% 2.0, 99% 2.0, 99.9% 2.0, max 2.0"


def test_latency_is_measured_by_the_side_that_dials(tmp_path: Path) -> None:
    with start("perf", "local_lat", f"ipc://{tmp_path}/perf", "64", "100") as local:
        out, err = run("perf", "remote_lat", address_of(local), "64", "100")
        assert end(local) == ("", "")
    assert err == ""
    assert re.fullmatch(
        rf"message size: 64 \[B\]\nround trip count: 100\naverage latency: {NUMBER} \[us\]\n{PERCENTILES}\n", out
    )


def test_throughput_is_measured_by_the_side_that_listens(tmp_path: Path) -> None:
    with start("perf", "local_thr", f"ipc://{tmp_path}/perf", "64", "1000") as local:
        assert run("perf", "remote_thr", address_of(local), "64", "1000") == ("", "")
        out, _ = end(local)
    assert re.fullmatch(
        rf"message size: 64 \[B\]\nmessage count: 1000\nthroughput: \d+ \[msg/s\]\nthroughput: {NUMBER} \[Mb/s\]\n", out
    )


@pytest.mark.parametrize(("test", "last"), [("inproc_lat", "[us]"), ("inproc_thr", "[Mb/s]")])
def test_both_sides_may_be_in_one_process(test: str, last: str) -> None:
    out, err = run("perf", test, "0", "100")
    assert out.splitlines()[0] == "message size: 0 [B]" and out.rstrip().endswith(last) and err == ""


def test_a_side_that_is_killed_ends_the_other_one(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for test, dying, left in (("lat", "remote", "local"), ("lat", "local", "remote"), ("thr", "remote", "local")):
            path = tmp_path / f"{test}-{dying}"
            local = stack.enter_context(start("perf", f"local_{test}", f"ipc://{path}", "64", "100000000", "-v"))
            address = address_of(local)
            remote = stack.enter_context(start("perf", f"remote_{test}", address, "64", "100000000"))
            assert "connected" in read_line(local.stderr)
            sides = {"local": local, "remote": remote}
            sides[dying].kill()
            assert end(sides[left], 1)[1].endswith("gmultisocket: the other side has gone before the end\n")
            path.unlink(missing_ok=True)


@pytest.mark.parametrize("test", ["inproc_lat", "inproc_thr"])
def test_a_side_that_fails_ends_the_other_one(test: str) -> None:
    out, err = run("perf", test, "200000", "10", status=1)
    assert out == "" and "a content of 200000 bytes is over the limit of 131072 bytes" in err and err.count("\n") == 1


def test_different_sizes_are_an_error(tmp_path: Path) -> None:
    with start("perf", "local_thr", f"ipc://{tmp_path}/perf", "10", "1") as local:
        run("perf", "remote_thr", address_of(local), "11", "1")
        _, err = end(local, 1)
    assert err == "gmultisocket: a message has 11 bytes instead of 10: both sides need the same SIZE\n"


def test_fanout_measures_every_delivery() -> None:
    out, err = run("perf", "fanout", "20", "64", "5")
    assert err == ""
    lines = out.splitlines()
    assert lines[:3] == ["subscribers: 20", "message size: 64 [B]", "publications: 5"]
    assert re.fullmatch(r"deliveries: \d+ \[msg/s\]", lines[3])
    assert [line.partition(":")[0] for line in lines[4:]] == ["latency to each", "latency to last"]
    assert all(len(line) <= 80 for line in lines)
    assert all(line.endswith("[ms]") for line in lines[4:])


def test_fanout_says_that_the_system_allows_too_few_descriptors() -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)); import sys;"
    limited += "from gmultisocket.cli import main; sys.exit(main(['perf', 'fanout', '1000']))"
    with start(program=[sys.executable, "-c", limited]) as process:
        out, err = end(process, 1)
    assert (out, err) == ("", "gmultisocket: 1000 peers need 1064 descriptors, and the limit is 100: see 'ulimit -n'\n")
