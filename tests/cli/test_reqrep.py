from __future__ import annotations

from pathlib import Path

from gmultisocket import Rep, Req
from tests.cli.command import address_of, end, interrupt, read_line, run, start, write_line


def test_each_line_is_asked_when_the_line_before_has_its_answer(tmp_path: Path) -> None:
    with start("rep", "-l", f"ipc://{tmp_path}/rep") as rep, start("req", "-d", address_of(rep), "--lines") as req:
        for line in (b"one", b"two"):
            write_line(req, line)
            # Without an answer of its own it sends back what was asked.
            assert read_line(req.stdout) == read_line(rep.stdout) == line.decode() + "\n"
        assert end(req)[0] == ""
        assert interrupt(rep) == (0, "", "")


def test_a_rep_answers_with_a_file_and_ends_after_enough(tmp_path: Path) -> None:
    (tmp_path / "answer").write_bytes(b"\xffbytes")
    with start("rep", "-l", f"ipc://{tmp_path}/rep", "-F", f"{tmp_path}/answer", "-n", "2") as rep, Req() as req:
        req.dial(address_of(rep))
        assert [req.request(b"a"), req.request(b"b")] == [b"\xffbytes"] * 2
        assert end(rep)[0] == "a\nb\n"


def test_a_question_without_an_answer_does_not_end_the_next_ones(tmp_path: Path) -> None:
    with Rep(lambda content: None if content == b"bad" else content.upper()) as rep:
        address = rep.listen(f"ipc://{tmp_path}/rep").address
        rep.start()
        out, err = run("req", "-d", address, "-t", "0.2", "--lines", data=b"bad\ngood\n", status=1)
    assert out == "GOOD\n" and "request timed out after 0.2 s" in err


def test_a_rep_that_fails_is_told(tmp_path: Path) -> None:
    with Rep(lambda content: b"" if content else 1 / 0) as rep:  # type: ignore[arg-type]
        address = rep.listen(f"ipc://{tmp_path}/rep").address
        rep.start()
        _, err = run("req", "-d", address, "-D", "", status=1)
    assert "failed" in err and err.count("\n") == 2
