from __future__ import annotations

import re
import shlex

import pytest

from gmultisocket.cli import COMMANDS, main
from tests.cli.command import ROOT, examples_of, help_of, parser_of
from tests.clipage import PAGE, blocks, filled


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_fits_a_screen_and_ends_with_examples(command: str) -> None:
    lines = help_of(command).splitlines()
    assert lines[0].startswith(f"usage: gmultisocket {command} [OPTION]...")
    # The prompt takes the 24th line.
    assert len(lines) <= 23
    assert max(map(len, lines)) < 80
    assert any(f"gmultisocket {command} " in f"{example} " for example in examples_of(command))


def test_the_help_of_all_fits_a_screen_and_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out, _ = capsys.readouterr()
    assert len(out.splitlines()) <= 23 and max(map(len, out.splitlines())) < 80
    assert set(COMMANDS) <= set(out.replace(",", " ").split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_argument_is_in_the_help_and_every_name_of_it_on_the_page(command: str) -> None:
    shown, explained = words(help_of(command)), words(PAGE.read_text())
    for action in parser_of(command)._actions:
        names = set(action.option_strings)
        assert names - {"-h", "--help"} <= explained
        # Others are short for --format, --split, --listen or --dial, and mean nothing else.
        short = action.const is not None and action.dest in ("format", "split")
        short |= names.isdisjoint(("--listen", "--dial")) and action.dest in ("listen", "dial")
        if names and "-h" not in names and not short:
            assert names & shown


def words(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[\w-]+", text))


def test_the_page_has_the_help_of_every_command_as_it_is() -> None:
    page = PAGE.read_text()
    assert sorted(blocks(page)) == sorted(["", *COMMANDS])
    assert filled(page) == page, "make it again: python3 -m tests.clipage"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "a command is missing: 'gmultisocket --help' lists them"),
        (("sing",), "'sing' is no command: 'gmultisocket --help' lists them"),
        (("subb",), "'subb' is no command (did you mean 'sub'?): 'gmultisocket --help' lists them"),
        (("recv",), "no address was given: use --listen or --dial, e.g. --dial tcp://127.0.0.1:5555"),
        (("recv", "--count", "0"), "recv: argument -n/-C/--count: '0' is not a whole number of at least 1"),
        (("recv", "--count", "many"), "recv: argument -n/-C/--count: 'many' is not a whole number of at least 1"),
        (("send", "-t", "-1"), "send: argument -t/--timeout/--send-timeout: "),
        (("send", "-t", "soon"), "'soon' is not a number of seconds"),
        (("pub", "--peers", "no"), "pub: argument --peers: 'no' is not a whole number of at least 1"),
        (("pub", "--split", "words"), "'words' is neither lines, whole, prefixed, json nor a number of bytes"),
        (("recv", "--format", "xml"), "invalid choice: 'xml' (choose from"),
        (("sub", "-H", "no colon"), "sub: argument -H/--header: 'no colon' is not NAME:VALUE"),
        (("sub", "--colour"), "sub: unrecognized arguments: --colour ('gmultisocket sub --help' explains)"),
        (("sub", "--listen"), "sub: argument -l/--listen/--bind: expected one argument"),
        (("send", "-o", "socket.send_queue_sise=1"), "did you mean 'socket.send_queue_size'?"),
        (("send", "-o", "socket.send_queue_size=many"), "expected a whole number"),
        (("send", "one", "-D", "two"), "give what to send once: as DATA, with --data or with --file"),
        (("send", "-l", "inproc://x", "--peers", "0", "-F", "/missing"), "cannot read /missing: no such file"),
        (("send", "-l", "inproc://x", "--peers", "0", "-F", "/"), "cannot read /: is a directory"),
        (("send", "-d", "tcp://127.0.0.1", "x"), "the port is missing"),
        (("send", "-d", "smoke://signals", "x"), "no transport has the scheme 'smoke'"),
        (("send", "-d", "127.0.0.1:5555", "x"), "bad address '127.0.0.1:5555'"),
        (("send", "-d", "tcp://127.0.0.1:5555?no_such=1", "x"), "unknown option 'no_such'"),
        (("sub", "-d", "inproc://x", "-s", "a..b"), "bad topic 'a..b'"),
        (("pub", "-l", "inproc://x", "--peers", "0", "-T", "a b.*", "x"), "bad topic"),
        (("recv", "-l", "tls+tcp://127.0.0.1:0", "--cert", "/missing"), "/missing"),
        (("switch", "tcp://127.0.0.1:0"), "switch: the following arguments are required: FRONT"),
        (("switch", "a", "b", "--max-ttl", "256"), "switch: argument --max-ttl: must be at most 255"),
        (("switch", "a", "b", "--max-ttl", "0"), "switch: argument --max-ttl: '0' is not a whole number"),
        (("perf", "lat"), "perf: 'lat' is no test"),
        (("perf", "local_lat", "inproc://x"), "perf: local_lat needs ADDRESS SIZE N"),
        (("perf", "inproc_lat", "1", "0"), "perf: N: '0' is not a whole number of at least 1"),
    ],
)
def test_what_is_wrong_with_the_arguments_is_told_in_one_line_with_status_2(
    arguments: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    # An address is reported when it is connected.
    lines = [line for line in err.splitlines() if " listening at " not in line]
    assert out == "" and len(lines) == 1 and lines[0].startswith("gmultisocket: ") and why in lines[0], err


def test_help_comes_before_what_is_wrong_with_later_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recv", "--help", "--count", "0"]) == 0
    assert capsys.readouterr().out == help_of("recv")


def test_the_flags_of_nngcat_for_addresses_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    flags = "-l a --bind b -X c -L 1 --bind-ipc /d --bind-local 2 "
    flags += "-d e --connect f -x g --connect-ipc h --connect-local 3"
    arguments = parser_of("pull").parse_args(flags.split())
    assert arguments.listen == ["a", "b", "ipc:///c", "tcp://127.0.0.1:1", "ipc:///d", "tcp://127.0.0.1:2"]
    assert arguments.dial == ["e", "f", "ipc:///g", "ipc:///h", "tcp://127.0.0.1:3"]
    assert parser_of("pull").parse_args([]).listen == parser_of("push").parse_args([]).dial == []


def command_lines() -> list[tuple[str, str]]:
    """Return the command lines of the README, the pages and the examples, with the names of their files."""
    pages = [ROOT / "README.rst", *sorted((ROOT / "docs").rglob("*.rst")), *sorted((ROOT / "examples").rglob("*.rst"))]
    found = []
    for page in pages:
        text = page.read_text().replace("\\\n", " ").replace("|\n    >", "|")
        for line in re.findall(r"^(?:    |   )(?:\$ |.*\| )?(gmultisocket [a-z-].*)$", text, re.M):
            found.append((page.name, line))
    return found


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_the_command_lines_of_the_pages_are_right(page: str, line: str) -> None:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    for operator in ("|", "||", "<", ">", "&", "&&", ";"):
        if operator in words:
            words = words[: words.index(operator)]
    _, command, *arguments = words
    if command not in ("COMMAND", "--help", "--version"):
        parser_of(command).parse_args(arguments)
