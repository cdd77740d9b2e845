"""The mutants of the library: copies of it in which one protection is missing.

A test suite that still passes with a mutant does not test that protection. All mutants are made from the source, by
these rules, and none is chosen:

* ``raise``: a ``raise`` statement is taken out. The program goes on at the next statement.
* ``drop``: a statement that counts is taken out: a call of one of :data:`COUNTING` whose result is not used, ``+= n``
  for an attribute in :data:`COUNTERS` or a variable ``lost``, and an assignment to an item of a ``drops``.
* ``limit``: a comparison by ``<``, ``<=``, ``>`` or ``>=`` with a limit is replaced by the value that it has while the
  limit is kept. A limit is an expression with a constant (a name in capitals), an option that is read, or a name that
  says so (:data:`LIMIT_WORDS`); the right side is looked at first. It is an upper limit, and a lower one if a word of
  its name is one of :data:`LOWER_WORDS`. A comparison with 0 is left alone: it asks whether a limit is set.

A mutant's name is the module, the function, the kind and the text of what was changed, and a number if an earlier one
has the same name otherwise. So it stays the same when lines move.

``tests/mutations.txt`` lists those that are known to survive, with reasons. :mod:`tests.mutations` tries them out.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Final

__all__ = ["LISTED", "PACKAGE", "Mutant", "listed", "mutants", "mutants_of"]

PACKAGE: Final = Path(__file__).resolve().parent.parent / "gmultisocket"
LISTED: Final = Path(__file__).with_name("mutations.txt")

#: What is mutated: folders and modules of the package.
PARTS: Final = ("core", "protocol", "transport", "wire.py", "switch.py", "loop", "log.py", "usercode.py")
#: Methods that count lost messages, and do nothing else.
COUNTING: Final = {"drop", "_drop", "count_drop", "_count_useless", "lose"}
#: Attributes that users read, or that are added to those.
COUNTERS: Final = {
    "accepted", "attempts", "bytes_received", "bytes_sent", "failed", "forwarded", "left_out", "lost",
    "messages_received", "messages_sent", "reconnects", "refused", "unconfirmed",
}  # fmt: skip
LIMIT_WORDS: Final = {
    "allowed", "bound", "budget", "concurrency", "high", "interval", "least", "limit", "limits", "longest", "low",
    "max", "min", "most", "number", "patience", "shortest", "timeout",
}  # fmt: skip
LOWER_WORDS: Final = {"least", "low", "min", "shortest", "size"}
#: With one of these as well it is an upper limit: ``MAX_READ_SIZE``.
UPPER_WORDS: Final = {"limit", "longest", "max", "most"}

#: The longest text in a name.
_MAX_TEXT: Final = 90


@dataclass(frozen=True)
class Mutant:
    """One change of one module.

    Attributes:
        path: the module, from the package's folder.
        function: its qualified name; empty at the module's top level.
        kind: ``raise``, ``drop`` or ``limit``.
        text: the code that is changed, in one line.
        number: 1, or 2 for the second one with the same text in a function, and so on.
        span: where the code is: its first line and column, and its last line and the column after it. From 1 and 0.
        replacement: the code that takes its place.
        far: lines that run only if something happened: a body of the statement that compares, or what comes after it.
    """

    path: str
    function: str
    kind: str
    text: str
    number: int
    span: tuple[int, int, int, int]
    replacement: str
    far: tuple[int, ...]

    @property
    def name(self) -> str:
        number = f" #{self.number}" if self.number > 1 else ""
        return " ".join(filter(None, (self.path, self.function, self.kind, self.text))) + number

    @property
    def line(self) -> int:
        return self.span[0]

    def apply(self, source: str) -> str:
        """Return the module's source with the change. The number of lines stays the same."""
        first, start, last, end = self.span
        lines = source.splitlines(keepends=True)
        # Columns are in bytes of UTF-8.
        before = lines[first - 1].encode()[:start].decode()
        after = lines[last - 1].encode()[end:].decode()
        kept = before + self.replacement + "\n" * (last - first)
        if last > first:
            # A replacement is shorter than what it replaces: the line breaks follow it, inside brackets or after it.
            kept = before + self.replacement + after.rstrip("\n") + "\n" * (last - first)
            after = "\n" if after.endswith("\n") else ""
        return "".join([*lines[: first - 1], kept + after, *lines[last:]])


def mutants() -> list[Mutant]:
    """Return all mutants of the package, in the order of the source."""
    found: list[Mutant] = []
    for part in PARTS:
        path = PACKAGE / part
        for module in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found += mutants_of(str(module.relative_to(PACKAGE)), module.read_text())
    return found


def mutants_of(path: str, source: str) -> list[Mutant]:
    """Return the mutants of one module."""
    seen: Counter[tuple[str, str, str]] = Counter()
    found = []
    for change in sorted(_changes(ast.parse(source), "", None), key=lambda change: change.span):
        key = (change.function, change.kind, change.text)
        seen[key] += 1
        found.append(Mutant(path, *key, seen[key], change.span, change.replacement, change.far))
    return found


def listed(text: str) -> dict[str, str]:
    """Read a list of survivors: name of the mutant -> reason.

    A reason is one or more lines that are not indented. The names it holds for follow, indented. ``#`` is a comment.
    """
    reason = ""
    found: dict[str, str] = {}
    named = True
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line[0].isspace():
            name = line.strip()
            if name in found:
                raise ValueError(f"listed twice: {name}")
            found[name] = reason
            named = True
        else:
            reason = line.strip() if named else f"{reason} {line.strip()}"
            named = False
    return found


# The rules


@dataclass(frozen=True)
class _Change:
    function: str
    kind: str
    text: str
    span: tuple[int, int, int, int]
    replacement: str
    far: tuple[int, ...]


def _changes(node: ast.AST, function: str, after: ast.stmt | None) -> Iterator[_Change]:
    """Yield the changes below a node. ``after`` is the statement that follows it."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        function = f"{function}.{node.name}" if function else node.name
        after = None
    if isinstance(node, ast.stmt):
        kind = _kind_of(node)
        if kind:
            yield _change(function, kind, node, "pass", ())
        far = _far_lines(node, after)
        for part in _own_expressions(node):
            yield from _limits(part, function, far)
    for _, value in ast.iter_fields(node):
        if isinstance(value, list):
            for child, following in zip_longest(value, value[1:]):
                if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
                    yield from _changes(child, function, following if isinstance(following, ast.stmt) else after)


def _change(function: str, kind: str, node: ast.stmt | ast.expr, replacement: str, far: tuple[int, ...]) -> _Change:
    text = " ".join(ast.unparse(node).split())
    if len(text) > _MAX_TEXT:
        text = text[: _MAX_TEXT - 3] + "..."
    assert node.end_lineno is not None and node.end_col_offset is not None
    span = (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset)
    return _Change(function, kind, text, span, replacement, far)


def _kind_of(node: ast.stmt) -> str:
    match node:
        case ast.Raise():
            return "raise"
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr=name))) if name in COUNTING:
            return "drop"
        case ast.AugAssign(target=ast.Name(id="lost"), op=ast.Add()):
            return "drop"
        case ast.AugAssign(target=ast.Attribute(attr=name), op=ast.Add()) if name in COUNTERS:
            return "drop"
        case ast.Assign(targets=[ast.Subscript(value=ast.Attribute(attr="drops" | "_drops"))]):
            return "drop"
    return ""


def _own_expressions(statement: ast.stmt) -> Iterator[ast.expr]:
    """Yield a statement's expressions, without those of the statements inside of it."""
    for _, value in ast.iter_fields(statement):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.expr):
                yield child
            elif isinstance(child, ast.withitem):
                yield child.context_expr


def _far_lines(statement: ast.stmt, after: ast.stmt | None) -> tuple[int, ...]:
    if not isinstance(statement, ast.If | ast.While):
        return ()
    sides = [statement.body[0], statement.orelse[0] if statement.orelse else after]
    return tuple(side.lineno for side in sides if side is not None)


def _limits(expression: ast.expr, function: str, far: tuple[int, ...]) -> Iterator[_Change]:
    for node in ast.walk(expression):
        if isinstance(node, ast.Compare) and (kept := _while_kept(node)) is not None:
            yield _change(function, "limit", node, str(kept), far)


def _while_kept(node: ast.Compare) -> bool | None:
    """Return the value of a comparison while a limit is kept, None if it compares with no limit."""
    kept = None
    sides = [node.left, *node.comparators]
    for left, operator, right in zip(sides, node.ops, sides[1:], strict=False):
        if not isinstance(operator, ast.Lt | ast.LtE | ast.Gt | ast.GtE) or _is_zero(left) or _is_zero(right):
            continue
        if not (_is_limit(right) or _is_limit(left)):
            continue
        limit = right if _is_limit(right) else left
        value_is_less = isinstance(operator, ast.Lt | ast.LtE) == (limit is right)
        words = _words(limit)
        is_lower = bool(words & LOWER_WORDS) and not words & UPPER_WORDS
        kept = value_is_less != is_lower
        if not kept:
            return False
    return kept


def _is_zero(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value == 0


def _is_limit(node: ast.expr) -> bool:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and type(part.value) is int and part.value > 2:
            return True
        if isinstance(part, ast.Name | ast.Attribute):
            name = part.id if isinstance(part, ast.Name) else part.attr
            if name.isupper() or name == "options" or _words_of(name) & LIMIT_WORDS:
                return True
    return False


def _words(node: ast.expr) -> set[str]:
    names = [
        part.id if isinstance(part, ast.Name) else part.attr
        for part in ast.walk(node)
        if isinstance(part, ast.Name | ast.Attribute)
    ]
    return set().union(*map(_words_of, names))


def _words_of(name: str) -> set[str]:
    return set(name.lower().split("_"))
