"""The tool that tries out mutants: its rules, and the list of those that survive."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests import mutations
from tests.cases import every_case
from tests.mutants import LISTED, PACKAGE, listed, mutants, mutants_of

SOURCE = """\
_MAX_ITEMS = 3


class Box:
    def put(self, item):
        if len(self.items) >= _MAX_ITEMS and (
            item is not None
        ):
            raise Full(
                item,
            )
        self.items.append(item)
        self.messages_sent += 1
        self.counters.drop("overflow")

    def check(self, size, timeout):
        if not 0 < size <= self.limit or timeout < 0:
            raise ValueError from None
        if size < self.options.get(min_size):
            self.drops["short"] = 1
            raise ValueError from None
        while size < _MAX_ITEMS: size += 1


def add(a, b):
    if a < b:
        raise ValueError
    a.sum += b
    return "→", b > 100
"""


def changed(name: str) -> str:
    """Return the lines that a mutant of the source above changes."""
    [mutant] = [mutant for mutant in mutants_of("box.py", SOURCE) if mutant.name == f"box.py {name}"]
    after = mutant.apply(SOURCE)
    ast.parse(after)
    pairs = zip(SOURCE.splitlines(), after.splitlines(), strict=True)
    return "|".join(new.strip() for old, new in pairs if old != new)


def test_each_rule_finds_its_code_and_takes_its_protection_away() -> None:
    expected = {
        "Box.put limit len(self.items) >= _MAX_ITEMS": "if False and (",
        "Box.put raise raise Full(item)": "pass||",
        "Box.put drop self.messages_sent += 1": "pass",
        "Box.put drop self.counters.drop('overflow')": "pass",
        "Box.check limit 0 < size <= self.limit": "if not True or timeout < 0:",
        "Box.check raise raise ValueError from None": "pass",
        "Box.check limit size < self.options.get(min_size)": "if False:",
        "Box.check drop self.drops['short'] = 1": "pass",
        "Box.check raise raise ValueError from None #2": "pass",
        "Box.check limit size < _MAX_ITEMS": "while True: size += 1",
        "add raise raise ValueError": "pass",
        "add limit b > 100": 'return "→", False',
    }
    assert [mutant.name for mutant in mutants_of("box.py", SOURCE)] == [f"box.py {name}" for name in expected]
    with every_case() as case:
        for name, lines in expected.items():
            with case(name):
                assert changed(name) == lines


def test_names_do_not_depend_on_lines_and_other_functions() -> None:
    moved = "# a comment\n\n" + SOURCE.replace("class Box", "def other():\n    raise ValueError\n\n\nclass Box")
    names = {mutant.name for mutant in mutants_of("box.py", SOURCE)}
    assert {mutant.name for mutant in mutants_of("box.py", moved)} - names == {"box.py other raise raise ValueError"}


def test_far_lines_are_those_of_the_branches() -> None:
    [full] = [mutant for mutant in mutants_of("box.py", SOURCE) if "_MAX_ITEMS" in mutant.text and "len" in mutant.text]
    assert [SOURCE.splitlines()[line - 1].strip() for line in full.far] == ["raise Full(", "self.items.append(item)"]


def test_every_mutant_of_the_library_is_valid_has_its_own_name_and_moves_no_line() -> None:
    found = mutants()
    assert len({mutant.name for mutant in found}) == len(found) > 400
    with every_case() as case:
        for mutant in found:
            with case(mutant.name):
                source = (PACKAGE / mutant.path).read_text()
                after = mutant.apply(source)
                ast.parse(after)
                assert after != source
                assert after.count("\n") == source.count("\n")


def test_each_listed_survivor_is_a_mutant_and_has_a_reason() -> None:
    """If one is not any more: ``python3 -m tests.mutations --tidy``."""
    names = {mutant.name for mutant in mutants()}
    with every_case() as case:
        for name, reason in listed(LISTED.read_text()).items():
            with case(name):
                assert name in names, "no mutant has this name"
                assert len(reason.split()) >= 4, "the reason is missing"


def test_a_list_is_reasons_with_names_below() -> None:
    text = "# comment\nOne reason\nin two lines.\n    a\n    b\n\nAnother.\n    c\n"
    assert listed(text) == {"a": "One reason in two lines.", "b": "One reason in two lines.", "c": "Another."}
    with pytest.raises(ValueError, match="twice"):
        listed("Why.\n  a\n  a\n")


def test_the_command_lists_what_a_pattern_selects(capsys: pytest.CaptureFixture[str]) -> None:
    assert mutations.main(["--list", "--only", r"^wire\.py .* raise"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert names and all(name.startswith("wire.py ") and " raise raise" in name for name in names)


def test_a_survivor_that_is_not_listed_fails_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = mutants()[:3]
    results = mutations._Results(tmp_path / "results.json")
    for mutant, result in zip(found, ["killed", "survived", "unrun"], strict=True):
        results.add(mutant, result, "")
    known = listed(LISTED.read_text())
    assert results.report(found[:1]) == 0
    assert results.report(found) == any(mutant.name not in known for mutant in found[1:])
    assert mutations._Results(tmp_path / "results.json").by_name == results.by_name
    capsys.readouterr()
