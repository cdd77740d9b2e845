from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.cli.command import PATIENCE, interrupt, read_line, run, start

#: Runs the demo in a process in which one of its parts does something else.
BROKEN = """
import sys
from gmultisocket.cli import demo, main
demo._TIMEOUT = 0.5
{change}
sys.exit(main(["demo", "--count", "5"]))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the demo makes its files. Its name is short: that of a unix socket must be."""
    path = tmp_path_factory.mktemp("t")
    monkeypatch.setenv("TMPDIR", str(path))
    return path


def test_it_ends_well_without_an_argument(folder: Path) -> None:
    out, err = run("demo")
    assert err == ""
    assert re.search(r"^    tcp://127\.0\.0\.1:\d+$", out, re.M)
    assert re.search(r"^    ipc:///.*/demo\.sock$", out, re.M)
    assert re.search(r"^    inproc://", out, re.M)
    assert re.search(r"^cut the tcp connection; the client redialed and was back after \d+\.\d\d s$", out, re.M)
    last = re.fullmatch(r"all well: ([\d,]+) of ([\d,]+) messages came right, [\d,]+ a second", out.splitlines()[-1])
    assert last and last.group(1) == last.group(2) == "30,000"
    assert not list(folder.iterdir())


def test_every_line_has_a_count_and_a_rate() -> None:
    out, _ = run("demo", "--count", "10")
    rows = re.findall(r"^(\S.*?)  +(\d+) +(\d+) +(\d+\.\d+) +([\d,]+)$", out, re.M)
    assert [row[0] for row in rows] == [
        "tcp: questions and answers",
        "ipc: questions and answers",
        "inproc: questions and answers",
        "tcp: one way",
        "ipc: one way",
        "inproc: one way",
        "to one of the three, in turn",
        "to all three",
        "tcp: questions and answers",
    ]
    assert all(row[1] == row[2] for row in rows)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("demo.Demo._answer = lambda self, message: b'wrong'", "NOT WELL: "),
        ("demo.Demo._send_to_one = lambda self: 4", "NOT WELL: 74 of 75 messages came right"),
        ("demo.Demo._serve = lambda self: None", "failed: Timeout: "),
        ("demo.Demo.cut = lambda self, name: self.failures.append('no cut')", "failed: no cut"),
    ],
)
def test_it_does_not_end_well_when_anything_went_wrong(change: str, words: str) -> None:
    with start(program=[sys.executable, "-c", BROKEN.format(change=change)]) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, (out, err)
    assert words in out.decode()
    assert "all well" not in out.decode()


def test_it_leaves_nothing_when_it_is_interrupted(folder: Path) -> None:
    with start("demo", "--count", "100000") as process:
        while "dialed each" not in read_line(process.stdout):
            pass
        assert list(folder.iterdir())
        status, _, err = interrupt(process)
    assert (status, err) == (130, "")
    assert not list(folder.iterdir())
