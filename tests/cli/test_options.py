from __future__ import annotations

from gmultisocket.options import describe
from tests.cli.command import run


def test_every_option_is_listed_with_its_default() -> None:
    out, _ = run("options")
    lines = out.splitlines()
    for option in describe():
        assert f"{option.name} = {option.default}" in lines
        assert f"    {option.doc}" in lines


def test_a_part_of_the_names_picks_some() -> None:
    out, _ = run("options", "KEEP_ALIVE_P")
    names = [line.partition(" = ")[0] for line in out.splitlines() if line.startswith("transport")]
    assert names == ["transport.tcp.keep_alive_period", "transport.tcp.keep_alive_probes"]


def test_a_part_that_no_name_has_is_an_error() -> None:
    assert run("options", "nonsense", status=1)[0] == ""
