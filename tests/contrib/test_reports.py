"""Reports of several processes in a folder: each reader gets each process once, and nothing that only grows falls."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import gevent
import pytest

from gmultisocket.backplane import totals
from gmultisocket.contrib import reports as module
from gmultisocket.contrib.reports import Reports, reports_in
from gmultisocket.stats import _forget
from gmultisocket.testing import wait_until
from gmultisocket.testing._fork import in_forked_child
from tests.faults.process import run_script, spawn_script

#: A process with a Push that has sent as many messages as the second argument says; it lives until it is told to end.
_PROCESS = """
import sys
import gevent
from gevent.fileobject import FileObject
from gmultisocket import Pull, Push
from gmultisocket.contrib.reports import reports_in

push, pull = Push(), Pull()
push.dial(pull.listen("inproc://here").address)
reports_in(sys.argv[1]).start()

def send(count):
    for _ in range(count):
        push.send(b"")
        pull.recv(5)

send(int(sys.argv[2]))
reports_in(sys.argv[1]).read()
print("ready", flush=True)
for line in FileObject(sys.stdin.buffer, "rb"):
    send(int(line))
    print("sent", flush=True)
push.close()
pull.close()
"""


class Process(Reports):
    """The reports of one process; several of them play several processes.

    Attributes:
        sent: what this process has counted.
    """

    made: ClassVar[list[Process]] = []

    def __init__(self, folder: Path, sent: int = 0) -> None:
        super().__init__(folder)
        self.sent = sent
        self.made.append(self)

    def start(self) -> None:
        """Report nothing on its own."""

    def die(self) -> None:
        """End without a last report."""
        self._release()


@pytest.fixture(autouse=True)
def no_locks_left() -> Iterator[None]:
    yield
    for process in Process.made:
        process.die()
    Process.made.clear()


@pytest.fixture(autouse=True)
def own_numbers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Process]]:
    """Change what a report says that its process has sent."""
    reporting: list[Process] = []
    original = Reports._report

    def report(self: Reports) -> dict[str, Any]:
        if isinstance(self, Process):
            reporting[:] = [self]
        return original(self)

    def numbers() -> dict[str, Any]:
        if not reporting:
            return process_stats()
        counts = dict.fromkeys(module.COUNTERS, 0) | {"messages_sent": reporting[0].sent}
        group = {"kind": "Push", "name": "", "pipes": 1, "drops": {"ttl": reporting[0].sent}, **counts}
        lag = {"count": 10, "sum": 0.5, "buckets": [[0.1, 7], [1.0, 9]], "max": 0.2}
        return {"pid": 1, "groups": [group], "loop_lag": lag}

    process_stats = module.process_stats
    monkeypatch.setattr(Reports, "_report", report)
    monkeypatch.setattr(module, "process_stats", numbers)
    yield reporting


def total(reports: Reports, name: str = "messages_sent") -> int:
    living, ended = reports.read()
    return sum(group[name] for report in [*living, ended] for group in report["groups"] if group["kind"] == "Push")


def files(folder: Path, kind: str = "json") -> list[str]:
    return sorted(path.name for path in folder.glob(f"*.{kind}"))


def test_each_process_sees_all(tmp_path: Path) -> None:
    one, two, three = (Process(tmp_path, sent) for sent in (1, 20, 300))
    for process in (one, two, three):
        process.read()
    for process in (one, two, three):
        living, ended = process.read()
        assert total(process) == 321 and len(living) == 3 and ended["groups"] == []
        assert living[0]["id"] == process._id
    one.sent = 2
    assert total(two) == 321 and total(one) == 322 == total(two)
    for process in (one, two, three):
        process.stop()


def test_a_process_that_has_died_is_counted_once_and_its_files_go(tmp_path: Path) -> None:
    one, two, three = (Process(tmp_path, sent) for sent in (1, 20, 300))
    for process in (one, two, three):
        process.read()
    two.die()
    for _ in range(3):
        for process in (one, three):
            living, ended = process.read()
            assert len(living) == 2 and ended["groups"][0]["messages_sent"] == 20
            assert ended["groups"][0]["drops"] == {"ttl": 20} and "pipes" not in ended["groups"][0]
            assert ended["loop_lag"] == {"count": 10, "sum": 0.5, "buckets": [[0.1, 7], [1.0, 9]]}
            assert total(process) == 321
    assert len(files(tmp_path)) == 3 and files(tmp_path, "lock") == sorted(
        [f"{one._id}.lock", f"{three._id}.lock", "ended.lock"]
    )
    one.die()
    three.die()
    assert total(Process(tmp_path)) == 321
    assert len(files(tmp_path)) == 2


def test_what_the_planes_of_a_process_have_counted_stays(tmp_path: Path) -> None:
    totals._forget()
    script = """
import sys
from gmultisocket import Backplane
from gmultisocket.contrib.reports import reports_in
from gmultisocket.testing import wait_until

plane = Backplane("memory://here")
for number in range(int(sys.argv[2])):
    plane.publish("a", b"")
wait_until(lambda: plane.counters.confirmed == int(sys.argv[2]))
reports_in(sys.argv[1]).read()
if sys.argv[2] == "3":
    plane.close()
"""
    for count in ("3", "40"):
        run_script(script, str(tmp_path), count)
    reader = Process(tmp_path)
    for _ in range(2):
        living, ended = reader.read()
        assert [numbers["url"] for numbers in ended["planes"]] == ["memory://here"]
        numbers = ended["planes"][0]
        assert numbers["sent"] == numbers["confirmed"] == 43 and numbers["gaps"] == numbers["unconfirmed"] == 0
        assert "planes" not in numbers and "buffered" not in numbers
        assert living[0]["planes"] == []


def test_one_that_ends_in_order_reports_at_the_end_and_not_again(tmp_path: Path) -> None:
    one, two = Process(tmp_path, 1), Process(tmp_path, 20)
    one.read()
    two.read()
    one.sent = 7
    one.stop()
    assert total(two) == 27
    one.sent = 1000
    assert total(one) == 27 == total(two)
    assert [report["id"] for report in one.read()[0]] == [two._id]
    two.stop()


@pytest.mark.parametrize("moment", ["glob", "_lives", "_ended", "_bury"])
def test_each_process_is_seen_once_also_if_another_reader_buries_the_dead_meanwhile(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one looks, at each of its steps, another one adds the dead to the sums and removes their files."""
    one, two, *others = (Process(tmp_path, sent) for sent in (1, 20, 300, 4000))
    for process in (one, two, *others):
        process.read()
    for process in others:
        process.die()
    owner: Any = Path if moment == "glob" else Reports
    original: Callable[..., Any] = getattr(owner, moment)
    between = 0

    def interrupted(self: Any, *args: Any) -> Any:
        nonlocal between
        found = original(self, *args)
        if self is one or (moment == "glob" and not between):
            between += 1
            found = [*found] if moment == "glob" else found
            with monkeypatch.context() as undone:
                undone.setattr(owner, moment, original)
                assert total(two) == 4321
        return found

    monkeypatch.setattr(owner, moment, interrupted)
    assert total(one) == 4321 and between
    monkeypatch.undo()
    assert len(files(tmp_path)) == 3


def test_a_reader_that_may_not_bury_the_dead_counts_them_all_the_same(tmp_path: Path) -> None:
    one, two, dead = (Process(tmp_path, sent) for sent in (1, 20, 300))
    for process in (one, two, dead):
        process.read()
    dead.die()
    with two._alone() as alone:
        assert alone and total(one) == 321
        assert len(files(tmp_path)) == 3
    assert total(one) == 321 and f"{one._id}.json" in files(tmp_path) and len(files(tmp_path)) == 3
    assert "ended.json" in files(tmp_path)


def test_what_means_something_else_is_left_alone(tmp_path: Path) -> None:
    strange = {"a.json": "{", "b.json": "[]", "c.json": '{"version": 99, "id": "c"}', "ended.json": "", "d.txt": "x"}
    for name, text in strange.items():
        (tmp_path / name).write_text(text)
    one = Process(tmp_path, 5)
    assert total(one) == 5
    one.stop()
    assert {name: (tmp_path / name).read_text() for name in strange} == strange


def test_the_folder_is_made_for_this_user_alone(tmp_path: Path) -> None:
    one = Process(tmp_path / "run" / "stats", 5)
    assert not (tmp_path / "run").exists()
    assert total(one) == 5
    for path in (tmp_path / "run" / "stats", *(tmp_path / "run" / "stats").iterdir()):
        assert path.stat().st_mode & 0o077 == 0
    one.stop()


def test_a_folder_that_cannot_be_used_is_an_error_and_no_file_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        Process(tmp_path / "file").read()
    one = Process(tmp_path, 1)
    one.read()
    one._more.append(lambda: {"odd": object()})
    with pytest.raises(TypeError):
        one.read()
    assert not files(tmp_path, "new")
    one._more.clear()
    one.stop()


def test_a_file_system_without_locks_is_an_error_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", flock)
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(OSError, match="No locks"):
            Process(tmp_path).read()
    assert os.listdir("/proc/self/fd") == before
    assert os.listdir(tmp_path) == []


def test_a_folder_has_one_report_of_each_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_all", {})
    monkeypatch.chdir(tmp_path)
    assert reports_in("stats") is reports_in(tmp_path / "stats") is not reports_in(tmp_path)


def test_a_forked_child_has_a_report_of_its_own(tmp_path: Path) -> None:
    one = Process(tmp_path, 1)
    one.read()
    parent = one._id

    def in_child(report: int) -> None:
        assert one._id is None
        assert total(one) == 2 and one._id != parent and len(one.read()[0]) == 2

    in_forked_child(in_child)
    assert one._id == parent
    living, ended = one.read()
    assert len(living) == 1 and ended["groups"][0]["messages_sent"] == 1
    one.stop()


# Real processes


def test_real_processes_that_are_killed_stop_and_end_in_order(tmp_path: Path, own_numbers: list[Process]) -> None:
    own_numbers.clear()
    # Other tests of this process have sent messages.
    _forget()
    reader = Reports(tmp_path)
    with spawn_script(_PROCESS, tmp_path, 10) as one, spawn_script(_PROCESS, tmp_path, 200) as two:
        for process in (one, two):
            assert process.stdout.readline() == b"ready\n"
        assert total(reader) == 210 and len(reader.read()[0]) == 3
        # It reports by itself.
        one.stdin.write(b"5\n")
        one.stdin.flush()
        assert one.stdout.readline() == b"sent\n"
        wait_until(lambda: total(reader) == 215, 30)
        os.kill(two.pid, signal.SIGSTOP)
        assert total(reader) == 215 and len(reader.read()[0]) == 3
        two.kill()
        two.wait()
        assert total(reader) == 215 and len(reader.read()[0]) == 2
        # The last message was sent after its last report.
        one.stdin.write(b"1\n")
        one.stdin.close()
        one.wait()
        assert one.returncode == 0
        assert total(reader) == 216 and len(reader.read()[0]) == 1
    assert files(tmp_path) == sorted([f"{reader._id}.json", "ended.json"])
    reader.stop()
    gevent.sleep(0)
    # After a restart of everything, the numbers go on.
    script = "import sys; from gmultisocket.contrib.reports import reports_in as r; print(r(sys.argv[1]).read()[1])"
    assert "'messages_sent': 216" in run_script(script, tmp_path)
