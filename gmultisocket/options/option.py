"""Option declarations: name, kind, default and range, and how values are checked and parsed; and their registry.

A name is written ``socket.send_queue_size``. Go's spelling, ``Socket.SendQueueSize``, in any case, is the same name.
Durations are in seconds.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection
from typing import Any, Generic, Literal, TypeVar, cast, overload

from ..errors import BadOptionValue, MisplacedOption, OptionError, UnknownOption
from ..frozen import Frozen
from .places import Place, usual_places

__all__ = ["Kind", "Option", "define", "describe", "lookup", "parse_bool"]

T = TypeVar("T")

Kind = Literal["bool", "int", "float", "str", "choice", "object"]

_KIND_OF_TYPE: dict[type, Kind] = {bool: "bool", int: "int", float: "float", str: "str", object: "object"}
#: The empty text counts as true, as in Go: ``?socket.no_recv``.
_BOOLS = dict.fromkeys(("", "true", "t", "yes", "1"), True) | dict.fromkeys(("false", "f", "no", "0"), False)
#: 20 digits are enough for every 64-bit value. Without a limit a hostile address could make Python convert millions.
_INT = r"[+-]?[0-9]{1,20}"
_NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_DURATION_PART = rf"({_NUMBER})(ns|us|µs|μs|ms|s|m|h)"
_DURATION = rf"([+-]?)(?:({_NUMBER})|((?:{_DURATION_PART})+))"
#: Unit -> (multiply by, divide by): whole numbers, so that "100ms" is exactly 0.1.
_UNITS = {"us": (1, 10**6), "µs": (1, 10**6), "μs": (1, 10**6), "ns": (1, 10**9), "ms": (1, 1000)}
_UNITS |= {"s": (1, 1), "m": (60, 1), "h": (3600, 1)}


class Option(Frozen, Generic[T]):
    """A declared option. Can be a key wherever a name can. Made by :func:`define`. Immutable.

    Attributes:
        name: ``"socket.send_queue_size"``.
        kind: ``"bool"``, ``"int"``, ``"float"``, ``"str"``, ``"choice"`` or ``"object"``.
        default: the value if none is set.
        unit: ``"bytes"``, ``"messages"``, ``"seconds"`` or "".
        minimum: the smallest allowed number.
        maximum: the largest allowed number.
        choices: the allowed texts of a choice.
        doc: one or two sentences for people.
        checker: checks values further than kind and range do. Returns the value to store, or raises a ValueError
            whose text says which values are right.
        parser: parses the text of a value in an address, if the kind's own parser does not fit. Raises as ``checker``.
        secret: whether errors and ``repr`` show ``"***"`` in place of a value.
        places: where it may be set, see ``places.py``: ``"socket"``, ``"dialer"``, ``"listener"``, ``"pipe"``,
            ``"plane"``.
    """

    __slots__ = ("checker", "choices", "default", "doc", "kind", "maximum", "minimum", "name", "parser",
                 "places", "secret", "unit")  # fmt: skip

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
        secret: bool = False,
        places: tuple[Place, ...] = (),
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
        self.secret = secret
        self.places = places or usual_places(name)
        self.default = self.validate(default)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<Option {self.name}: {self.kind} = {self.default!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # Options are compared by identity: copying or unpickling must return the registered one.
        return lookup, (self.name,)

    @property
    def expected(self) -> str:
        """The right values, in words."""
        match self.kind:
            case "bool":
                return "true or false"
            case "choice":
                return f"one of {', '.join(self.choices)}"
            case "str":
                return "a text"
            case "object":
                return "a Python object"
            case "int":
                return f"a whole number{self._range()}" + (f" ({self.unit})" if self.unit else "")
        if self.unit == "seconds":
            return f"a number of seconds{self._range()} (in an address also like 100ms, 5s, 2m or 1h)"
        return f"a number{self._range()}"

    def shown(self, value: object) -> object:
        """Return a value, or ``"***"`` if it may be a secret."""
        return "***" if self.secret else value

    def _range(self) -> str:
        if self.minimum is not None and self.maximum is not None:
            return f" from {self.minimum} to {self.maximum}"
        if self.minimum is not None:
            return f" of at least {self.minimum}"
        return f" of at most {self.maximum}" if self.maximum is not None else ""

    def check_place(self, place: Place) -> None:
        """Check that the option has an effect where it is set.

        Raises:
            MisplacedOption: it has none; the error says where it has.
        """
        if place not in self.places:
            raise MisplacedOption(self.name, place, self.places)

    def validate(self, value: object) -> T:
        """Check a Python value and return the value to store.

        An int is converted to a float if the option needs one; nothing else is converted. A bool is not a number here.

        Raises:
            BadOptionValue: the value has another type or is out of range; the error says what would be right.
        """
        if not self._fits(value):
            raise BadOptionValue(self.name, self.shown(value), self.expected)
        kept = float(cast(float, value)) if self.kind == "float" else value
        if self.checker is None:
            return cast(T, kept)
        try:
            return self.checker(kept)
        except ValueError as error:
            raise BadOptionValue(self.name, self.shown(value), str(error)) from None

    def parse(self, text: str) -> T:
        """Parse the text of a value in an address, and return the value to store.

        Raises:
            BadOptionValue: the text is wrong, or the option is a Python object, which an address cannot contain.
        """
        try:
            value = self._read(text)
        except ValueError as error:
            raise BadOptionValue(self.name, self.shown(text), str(error) or self.expected) from None
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
                # False for nan, for the infinities, and for ints that are too large for a float.
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
    if not re.fullmatch(_INT, text):
        raise ValueError
    return int(text)


def _parse_float(text: str) -> float:
    if not re.fullmatch(rf"[+-]?{_NUMBER}", text):
        raise ValueError
    return float(text)


def _parse_duration(text: str) -> float:
    """Return the seconds of ``"1.5"``, or of a duration as in Go's time.ParseDuration: ``"100ms"``, ``"1m30s"``."""
    match = re.fullmatch(_DURATION, text)
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
    """Return a name without underscores, in lower case: the same for ``socket.send_ttl`` and ``Socket.SendTTL``."""
    return name.replace("_", "").lower()


def _is_name(name: str) -> bool:
    """Return whether a text is snake_case with at least one dot."""
    parts = name.split(".")
    return len(parts) > 1 and all(
        part.isascii() and part.isidentifier() and part == part.lower() and part[0] != "_" for part in parts
    )


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
    secret: bool = False,
    places: tuple[Place, ...] = (),
) -> Option[T]:
    """Declare an option, register it for :func:`lookup` and addresses, and return it.

    Args:
        name: two or more parts in snake_case, joined by dots: ``"transport.smoke.colour"``.
        kind: the name of a kind, or one of ``bool``, ``int``, ``float``, ``str`` and ``object``.
        default: the value if none is set.

    The other arguments are the attributes of :class:`Option`.

    Raises:
        OptionError: the name is wrong or already defined; or the kind is unknown.
        BadOptionValue: the default is a wrong value.
    """
    kind = kind if isinstance(kind, str) else _KIND_OF_TYPE.get(kind, cast(Kind, kind))
    if kind not in (*_KIND_OF_TYPE.values(), "choice"):
        kinds = "bool, int, float, str, choice or object"
        raise OptionError(f"option {name}: no kind is called {kind!r}: expected {kinds}")
    if not _is_name(name):
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
        secret=secret,
        places=places,
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
    """Return the option with a name, in either spelling. An Option is returned as it is.

    Raises:
        UnknownOption: no option has this name; the error suggests a similar one.
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
    """Return the most similar known name, or ""."""
    # Imported here, because only an error needs it.
    from difflib import get_close_matches

    folded = _fold(name[:100])
    last = folded.rpartition(".")[2]
    same_last = [known for known in _by_go_name if known.rpartition(".")[2] == last]
    found = get_close_matches(folded, same_last, 1, 0.0) or get_close_matches(folded, _by_go_name, 1)
    return _by_go_name[found[0]].name if found else ""


def describe() -> list[Option[Any]]:
    """Return all defined options, sorted by name."""
    return [_by_name[name] for name in sorted(_by_name)]
