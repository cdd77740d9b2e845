"""One option: name, kind, default and range, how its values are checked and read from text; and the registry of all.

A name is written ``socket.send_queue_size``. Go's spelling, ``Socket.SendQueueSize``, means the same and may be in any
case. Durations are seconds.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection
from typing import Any, Generic, Literal, TypeVar, cast, overload

from ..errors import BadOptionValue, OptionError, UnknownOption
from ..frozen import Frozen

__all__ = ["Kind", "Option", "define", "describe", "lookup", "parse_bool"]

T = TypeVar("T")

Kind = Literal["bool", "int", "float", "str", "choice", "object"]

_KIND_OF_TYPE: dict[type, Kind] = {bool: "bool", int: "int", float: "float", str: "str", object: "object"}
_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
#: The empty text counts as true, as in Go: ``?socket.no_recv``.
_BOOLS = dict.fromkeys(("", "true", "t", "yes", "1"), True) | dict.fromkeys(("false", "f", "no", "0"), False)
#: 20 digits hold every 64-bit value, and keep a hostile address from making Python convert millions of them.
_INT = re.compile(r"[+-]?[0-9]{1,20}")
_NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_DURATION_PART = rf"({_NUMBER})(ns|us|µs|μs|ms|s|m|h)"
_DURATION = re.compile(rf"([+-]?)(?:({_NUMBER})|((?:{_DURATION_PART})+))")
#: Unit -> (multiply by, divide by): whole numbers, so that "100ms" is exactly 0.1.
_UNITS = {"us": (1, 10**6), "µs": (1, 10**6), "μs": (1, 10**6), "ns": (1, 10**9), "ms": (1, 1000)}
_UNITS |= {"s": (1, 1), "m": (60, 1), "h": (3600, 1)}


class Option(Frozen, Generic[T]):
    """One declared option. Usable as a key wherever a name is. Made by :func:`define`; cannot be changed.

    Attributes:
        name: ``"socket.send_queue_size"``.
        kind: ``"bool"``, ``"int"``, ``"float"``, ``"str"``, ``"choice"`` or ``"object"``.
        default: the value where none is set.
        unit: ``"bytes"``, ``"messages"``, ``"seconds"`` or "".
        minimum: the smallest number allowed.
        maximum: the largest number allowed.
        choices: what a choice may be.
        doc: one or two sentences for people.
        checker: for what kind and range cannot say: returns the value to keep, or raises ValueError with what would
            be right.
        parser: for a text form in addresses that is not the kind's own. Raises like ``checker``.
    """

    __slots__ = ("checker", "choices", "default", "doc", "kind", "maximum", "minimum", "name", "parser", "unit")

    def __init__(
        self,
        name: str,
        kind: Kind,
        default: T,
        *,
        unit: str = "",
        minimum: float | None = None,
        maximum: float | None = None,
        choices: tuple[str, ...] = (),
        doc: str = "",
        checker: Callable[[Any], T] | None = None,
        parser: Callable[[str], Any] | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.unit = unit
        self.minimum = minimum
        self.maximum = maximum
        self.choices = choices
        self.doc = doc
        self.checker = checker
        self.parser = parser
        self.default = self.validate(default)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<Option {self.name}: {self.kind} = {self.default!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # Options are compared by identity: a copy or an unpickled one has to be the registered one.
        return lookup, (self.name,)

    @property
    def expected(self) -> str:
        """What a right value looks like, in words."""
        match self.kind:
            case "bool":
                return "true or false"
            case "choice":
                return f"one of {', '.join(self.choices)}"
            case "str":
                return "a text"
            case "object":
                return "an object made in Python"
            case "int":
                return f"a whole number{self._range()}" + (f" ({self.unit})" if self.unit else "")
        if self.unit == "seconds":
            return f"a number of seconds{self._range()} (in an address also like 100ms, 5s, 2m or 1h)"
        return f"a number{self._range()}"

    def _range(self) -> str:
        if self.minimum is not None and self.maximum is not None:
            return f" from {self.minimum} to {self.maximum}"
        if self.minimum is not None:
            return f" of at least {self.minimum}"
        return f" of at most {self.maximum}" if self.maximum is not None else ""

    def validate(self, value: object) -> T:
        """Return the value to keep for a Python value. Only an int for a float is converted; a bool is no number.

        Raises:
            BadOptionValue: the value is of another type or outside the range; says what would be right.
        """
        if not self._fits(value):
            raise BadOptionValue(self.name, value, self.expected)
        kept = float(cast(float, value)) if self.kind == "float" else value
        if self.checker is None:
            return cast(T, kept)
        try:
            return self.checker(kept)
        except ValueError as error:
            raise BadOptionValue(self.name, value, str(error)) from None

    def parse(self, text: str) -> T:
        """Return the value that a text from an address stands for.

        Raises:
            BadOptionValue: the text is no such value, or the option takes an object that no text stands for.
        """
        try:
            value = self._read(text)
        except ValueError as error:
            raise BadOptionValue(self.name, text, str(error) or self.expected) from None
        return self.validate(value)

    def _fits(self, value: Any) -> bool:
        match self.kind:
            case "bool":
                return isinstance(value, bool)
            case "str":
                return isinstance(value, str)
            case "choice":
                return isinstance(value, str) and value in self.choices
            case "object":
                return True
            case "int":
                number = isinstance(value, int)
            case "float":
                # Written so that nan, the infinities and ints too large for a float all fail.
                number = isinstance(value, (int, float)) and abs(value) <= sys.float_info.max
        return (
            number
            and not isinstance(value, bool)
            and (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
        )

    def _read(self, text: str) -> object:
        if self.parser is not None:
            return self.parser(text)
        match self.kind:
            case "bool":
                return parse_bool(text)
            case "int":
                return _parse_int(text)
            case "float":
                return _parse_duration(text) if self.unit == "seconds" else _parse_float(text)
            case "object":
                raise ValueError(f"{self.expected}: it cannot be written in an address")
        return text


def parse_bool(text: str) -> bool:
    try:
        return _BOOLS[text.lower()]
    except KeyError:
        raise ValueError from None


def _parse_int(text: str) -> int:
    if not _INT.fullmatch(text):
        raise ValueError
    return int(text)


def _parse_float(text: str) -> float:
    if not re.fullmatch(rf"[+-]?{_NUMBER}", text):
        raise ValueError
    return float(text)


def _parse_duration(text: str) -> float:
    """Return seconds for ``"1.5"`` and for what Go's time.ParseDuration takes: ``"100ms"``, ``"1m30s"``."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError
    sign, number, parts = match.group(1, 2, 3)
    seconds = float(number) if number else 0.0
    for amount, unit in re.findall(_DURATION_PART, parts or ""):
        multiply, divide = _UNITS[unit]
        seconds += float(amount) * multiply / divide
    return -seconds if sign == "-" else seconds


# The registry

_by_name: dict[str, Option[Any]] = {}
_by_go_name: dict[str, Option[Any]] = {}


def _fold(name: str) -> str:
    """Return what is left of a name in either spelling: ``socket.send_ttl`` and ``Socket.SendTTL`` are one."""
    return name.replace("_", "").lower()


def define(
    name: str,
    kind: Kind | type,
    default: T,
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Collection[str] | None = None,
    doc: str = "",
    checker: Callable[[Any], T] | None = None,
    parser: Callable[[str], Any] | None = None,
) -> Option[T]:
    """Declare an option and return it; from then on :func:`lookup` and addresses know it.

    Args:
        name: two or more words joined by dots, in snake_case: ``"transport.smoke.colour"``.
        kind: the name of a kind, or one of ``bool``, ``int``, ``float``, ``str`` and ``object``.
        default: the value where none is set.

    The others are the attributes of :class:`Option`.

    Raises:
        OptionError: the name is taken, or is no such name; or there is no such kind.
        BadOptionValue: the default is not a right value.
    """
    kind = kind if isinstance(kind, str) else _KIND_OF_TYPE.get(kind, cast(Kind, kind))
    if kind not in (*_KIND_OF_TYPE.values(), "choice"):
        raise OptionError(f"option {name}: there is no kind {kind!r}")
    if not _NAME.fullmatch(name):
        raise OptionError(f"an option's name is snake_case with a dot, like transport.tcp.no_delay, not {name!r}")
    option = Option(
        name,
        kind,
        default,
        unit=unit,
        minimum=minimum,
        maximum=maximum,
        choices=tuple(choices or ()),
        doc=doc,
        checker=checker,
        parser=parser,
    )
    if _by_go_name.setdefault(_fold(name), option) is not option:
        raise OptionError(f"option {name} is already defined")
    _by_name[name] = option
    return option


@overload
def lookup(name_or_option: Option[T]) -> Option[T]: ...
@overload
def lookup(name_or_option: str) -> Option[Any]: ...
def lookup(name_or_option: str | Option[Any]) -> Option[Any]:
    """Return the option of a name in either spelling; an option is returned as it is.

    Raises:
        UnknownOption: nothing of that name is defined; suggests the nearest name.
    """
    if isinstance(name_or_option, Option):
        return name_or_option
    if not isinstance(name_or_option, str):
        raise UnknownOption(name_or_option)
    option = _by_name.get(name_or_option)
    if option is None and "_" not in name_or_option:
        option = _by_go_name.get(name_or_option.lower())
    if option is None:
        raise UnknownOption(name_or_option, _nearest(name_or_option))
    return option


def _nearest(name: str) -> str:
    """Return the known name that was probably meant, or ""."""
    # Only on the way to an error: importing the library need not pay for it.
    from difflib import get_close_matches

    folded = _fold(name[:100])
    last = folded.rpartition(".")[2]
    same_last = [known for known in _by_go_name if known.rpartition(".")[2] == last]
    found = get_close_matches(folded, same_last, 1, 0.0) or get_close_matches(folded, _by_go_name, 1)
    return _by_go_name[found[0]].name if found else ""


def describe() -> list[Option[Any]]:
    """Return every option that is defined, sorted by name."""
    return [_by_name[name] for name in sorted(_by_name)]
