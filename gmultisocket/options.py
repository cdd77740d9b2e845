"""Typed options: what can be set, what values are allowed, and scopes that inherit them.

Here live :class:`Option` (one declaration), the registry of all of them (:func:`define`, :func:`lookup`,
:func:`describe`), :class:`Options` (the values of one socket, dialer, listener or pipe) and, at the end, every
option that this library reads, as attributes of ``socket``, ``connector``, ``transport`` and ``protocol``. What an
option does is the business of whoever reads it; the text form of an address is that of :mod:`gmultisocket.address`.

A name is written ``socket.send_queue_size``. Go's spelling, ``Socket.SendQueueSize``, means the same and may be in
any case. Durations are seconds. Nothing here blocks, switches greenlets or takes a lock.

Source: Go ``options/options.go`` and the ``options.go`` of each package there. Different on purpose: a bad
value is an error and never silently the default, and a refused change leaves everything as it was.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, cast, overload
from weakref import WeakKeyDictionary

from .errors import BadOptionValue, OptionError, UnknownOption

__all__ = [
    "Kind",
    "Option",
    "OptionValues",
    "Options",
    "connector",
    "define",
    "describe",
    "follow",
    "lookup",
    "protocol",
    "socket",
    "transport",
]

logger = logging.getLogger("gmultisocket.options")

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


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Option(Generic[T]):
    """One declared option. Usable as a key wherever a name is. Made by :func:`define`.

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

    name: str
    kind: Kind
    default: T
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    doc: str = ""
    checker: Callable[[Any], T] | None = None
    parser: Callable[[str], Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "default", self.validate(self.default))

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
                return _parse_bool(text)
            case "int":
                return _parse_int(text)
            case "float":
                return _parse_duration(text) if self.unit == "seconds" else _parse_float(text)
            case "object":
                raise ValueError(f"{self.expected}: it cannot be written in an address")
        return text


def _parse_bool(text: str) -> bool:
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
    option = Option(name, kind, default, unit, minimum, maximum, tuple(choices or ()), doc, checker, parser)
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


# Scopes

#: Values by name or option, as users hand them in. (Mappings are invariant in their keys: a key type of
#: ``str | Option`` would make type checkers refuse a plain dict by name.)
OptionValues = Mapping[Any, Any]


@dataclass(slots=True, eq=False)
class _Hook:
    """Something to call for one option."""

    option: Option[Any]
    changed: Callable[[Any, Any], object]
    check: Callable[[Any], object] | None = None

    def of(self, option: Option[Any]) -> _Hook | None:
        return self if option is self.option else None


@dataclass(slots=True, eq=False)
class _Watch:
    """An object to be told of several options: one entry in its scope, as there may be very many such objects."""

    target: Any
    takes: Mapping[Option[Any], Callable[[Any, Any], object]]

    def of(self, option: Option[Any]) -> _Hook | None:
        take = self.takes.get(option)
        return None if take is None else _Hook(option, lambda old, new: take(self.target, new))


class Options:
    """The option values of one object; what is not set here comes from ``parent``, and then from the default.

    Not for use inside a loop over messages: objects keep a copy of what they need there and follow it with
    :meth:`on_change`. A scope holds its parent; a parent knows the scopes below it only weakly.
    """

    # A scope that nobody set or watched anything on costs its slots and no more: a server has one a pipe.
    __slots__ = ("__weakref__", "_below", "_hooks", "_parent", "_values")

    def __init__(self, values: OptionValues | None = None, parent: Options | None = None) -> None:
        """Make a scope.

        Raises:
            UnknownOption: a name in ``values`` is not defined.
            BadOptionValue: a value there is not right.
        """
        self._parent = parent
        self._values: dict[Option[Any], Any] | None = None
        self._hooks: list[_Hook | _Watch] | None = None
        self._below: WeakKeyDictionary[Options, None] | None = None
        if values:
            options = ((lookup(name), value) for name, value in values.items())
            self._values = {option: option.validate(value) for option, value in options}

    def __repr__(self) -> str:
        return f"Options({self.own()!r})"

    @overload
    def get(self, option: Option[T]) -> T: ...
    @overload
    def get(self, option: str) -> Any: ...
    def get(self, option: str | Option[Any]) -> Any:
        """Return the value in force here: this scope's own, else the nearest one above, else the default.

        Raises:
            UnknownOption: no option has this name.
        """
        option = lookup(option)
        scope: Options | None = self
        while scope is not None:
            if scope._values is not None and option in scope._values:
                return scope._values[option]
            scope = scope._parent
        return option.default

    def has_own(self, option: str | Option[Any]) -> bool:
        """Tell whether this scope has a value of its own."""
        return self._values is not None and lookup(option) in self._values

    def own(self) -> dict[str, Any]:
        """Return the values set in this scope, by name."""
        return {option.name: value for option, value in (self._values or {}).items()}

    @overload
    def set(self, option: Option[T], value: T) -> None: ...
    @overload
    def set(self, option: str, value: Any) -> None: ...
    def set(self, option: str | Option[Any], value: Any) -> None:
        """Set a value here, for this scope and for those below that have none of their own.

        Every check of every scope that is concerned runs first, then the value is there, then the hooks run, this
        scope's first. Where a check or a hook raises, the error comes out of here and nothing has changed: hooks
        that had run are called again with old and new exchanged.

        Raises:
            UnknownOption: no option has this name.
            BadOptionValue: the value is not right.
        """
        option = lookup(option)
        value = option.validate(value)
        hooks = list(self._hooks_of(option))
        for hook in hooks:
            if hook.check is not None:
                hook.check(value)
        old = self.get(option)
        values = self._values = {} if self._values is None else self._values
        had, own = option in values, values.get(option)
        values[option] = value
        told = 0
        try:
            for hook in hooks:
                hook.changed(old, value)
                told += 1
        except BaseException:
            if had:
                values[option] = own
            else:
                values.pop(option, None)
            _tell_back(hooks[:told], old, value)
            raise

    def on_change(
        self, option: str | Option[T], hook: Callable[[T, T], object], check: Callable[[T], object] | None = None
    ) -> Callable[[], None]:
        """Call ``hook(old, new)`` after each change of the value in force here, and return what ends that.

        Args:
            option: the option to watch.
            hook: called when the value is set here, or above while there is none here. Must not block, nor set
                the same option. Should not raise: refusing is for ``check``, before anyone has seen the value.
            check: called with the new value before; raises to refuse it. Must not block, nor change anything.

        Raises:
            UnknownOption: no option has this name.
        """
        entry = _Hook(lookup(option), hook, check)
        self._add(entry)

        def remove() -> None:
            if self._hooks is not None and entry in self._hooks:
                self._hooks.remove(entry)

        return remove

    def watch(self, target: T, takes: Mapping[Option[Any], Callable[[T, Any], object]]) -> None:
        """Call ``take(target, new)`` after each change of an option in ``takes``, as :meth:`on_change` would.

        Cheap, however many options there are, if ``takes`` is shared: it should be a constant. The scope keeps the
        target alive. :func:`follow` also tells the values of now.
        """
        self._add(_Watch(target, takes))

    def _add(self, entry: _Hook | _Watch) -> None:
        if self._hooks is None:
            self._hooks = []
            self._join()
        self._hooks.append(entry)

    def _hooks_of(self, option: Option[Any]) -> Iterator[_Hook]:
        for scope in self._concerned(option):
            for entry in scope._hooks or ():
                hook = entry.of(option)
                if hook is not None:
                    yield hook

    def _join(self) -> None:
        """Have the scopes above know of this one. Left until there is a hook to call: most scopes never get one."""
        if self._parent is None:
            return
        if self._parent._below is None:
            self._parent._below = WeakKeyDictionary()
            self._parent._join()
        self._parent._below[self] = None

    def _concerned(self, option: Option[Any]) -> Iterator[Options]:
        yield self
        for scope in list(self._below or ()):
            if not scope.has_own(option):
                yield from scope._concerned(option)


def follow(options: Options, target: T, takes: Mapping[Option[Any], Callable[[T, Any], object]]) -> None:
    """Call ``take(target, value)`` with the values in force of all options in ``takes``, now and after each change.

    For objects that keep copies of what hot code looks at. Neither blocks nor looks at ``takes`` later than
    :meth:`Options.watch` does.
    """
    for option, take in takes.items():
        take(target, options.get(option))
    options.watch(target, takes)


def _tell_back(hooks: list[_Hook], old: Any, new: Any) -> None:
    """Undo a change for hooks that had heard of it, the last first."""
    for hook in reversed(hooks):
        try:
            hook.changed(new, old)
        except Exception:
            # The error that refused the change is on its way to the caller; this one must not hide it.
            logger.exception("a hook of option %s failed while a refused change was undone", hook.option.name)


# The options of this library. The classes are only names: they give editors and mypy the typed path to each option.

_UINT32 = 2**32 - 1
_INT32 = 2**31 - 1
#: Of what has to end some time: 0 would mean "at once" to one reader and "never" to the next.
_SHORTEST = 0.001


def _check_pipe_limit(value: int) -> int:
    if value == 0:
        raise ValueError("-1 for no limit, or at least 1")
    return value


def _check_mode(value: int) -> int:
    if not 0 <= value <= 0o777:
        raise ValueError("a file mode from 0 to 0o777")
    return value


def _parse_mode(text: str) -> int:
    if not re.fullmatch("(0o)?[0-7]{1,4}", text):
        raise ValueError("a file mode in octal digits, like 0600")
    return int(text, 8)


def _check_uids(value: object) -> frozenset[int] | None:
    if value is None:
        return None
    if isinstance(value, Collection) and not isinstance(value, (str, bytes, bytearray)):
        uids = list(value)
        if all(isinstance(uid, int) and not isinstance(uid, bool) and 0 <= uid <= _UINT32 for uid in uids):
            return frozenset(uids)
    raise ValueError("a collection of user ids, or None for anybody")


def _parse_uids(text: str) -> list[int]:
    if not re.fullmatch("[0-9]{1,10}(,[0-9]{1,10})*", text):
        raise ValueError("user ids with commas between, like 0,1000")
    return [int(uid) for uid in text.split(",")]


def _check_ssl_context(value: object) -> object:
    # By what it can do: importing ssl costs more than importing this library, and most programs need none.
    if value is not None and not hasattr(value, "wrap_bio"):
        raise ValueError("an ssl.SSLContext, or None")
    return value


def _check_verify(value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise ValueError("true, false, or None for the usual")


def _parse_verify(text: str) -> bool:
    try:
        return _parse_bool(text)
    except ValueError:
        raise ValueError("true or false") from None


def _check_callable(value: object) -> object:
    if value is not None and not callable(value):
        raise ValueError("a function that returns it, so that no secret is kept in an option")
    return value


def _check_function(value: object) -> Callable[..., Any] | None:
    if value is None or callable(value):
        return cast("Callable[..., Any] | None", value)
    raise ValueError("a function, or None")


def _check_origins(value: object) -> tuple[str | re.Pattern[str], ...]:
    if isinstance(value, Collection) and not isinstance(value, (str, bytes, bytearray)):
        # Browsers write them in lower case.
        origins = tuple([origin.lower() if isinstance(origin, str) else origin for origin in value])
        if all(isinstance(origin, re.Pattern) or _is_origin(origin) for origin in origins):
            return origins
    raise ValueError("a collection of origins like https://example.com, or of compiled patterns")


def _is_origin(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s]+", value) is not None


def _check_headers(value: object) -> Mapping[str, str] | Callable[[], Mapping[str, str]]:
    if callable(value):
        return cast("Callable[[], Mapping[str, str]]", value)
    if isinstance(value, Mapping) and all(is_header(name, text) for name, text in value.items()):
        return dict(value)
    raise ValueError("a mapping of header names to values without line breaks, or a function that returns one")


def is_header(name: object, value: object) -> bool:
    """Tell whether two texts can be the name and value of an HTTP header: a line break in one would make two."""
    return (
        isinstance(name, str)
        and isinstance(value, str)
        and re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) is not None
        and re.fullmatch(r"[\t\x20-\x7e\x80-\xff]*", value) is not None
    )


class socket:
    """``socket.*``: sending and receiving."""

    no_recv = define("socket.no_recv", bool, False, doc="Drop what arrives; receiving is an error.")
    no_send = define("socket.no_send", bool, False, doc="Sending is an error.")
    recv_queue_size = define(
        "socket.recv_queue_size", int, 64, unit="messages", minimum=0, maximum=65535,
        doc="How many received messages may wait before reading stops. 0: they wait with their pipes.",
    )
    recv_queue_bytes = define(
        "socket.recv_queue_bytes", int, 0, unit="bytes", minimum=0,
        doc="How many bytes of received contents may wait before reading stops. 0: no limit.",
    )
    send_queue_size = define(
        "socket.send_queue_size", int, 64, unit="messages", minimum=0, maximum=65535,
        doc="How many messages may wait for each pipe. 0: none; a send ends when the transport has taken the message.",
    )
    send_queue_bytes = define(
        "socket.send_queue_bytes", int, 0, unit="bytes", minimum=0,
        doc="How many bytes may wait for each pipe. 0: no limit.",
    )
    send_overflow = define(
        "socket.send_overflow", "choice", "block", choices=("block", "drop_newest", "drop_oldest", "disconnect"),
        doc="What a send does about a pipe whose queue is full.",
    )
    send_ttl = define(
        "socket.send_ttl", int, 16, minimum=0, maximum=255,
        doc="How many hops a message may make. 0 means 16.",
    )
    send_best_effort = define(
        "socket.send_best_effort", bool, False, doc="Drop a message that cannot be queued at once."
    )
    send_stop_timeout = define(
        "socket.send_stop_timeout", float, 5.0, unit="seconds", minimum=0,
        doc="How long a close waits for what is queued to leave.",
    )
    max_send_content_length = define(
        "socket.max_send_content_length", int, -1, unit="bytes", minimum=-1, maximum=_UINT32,
        doc="Longer contents are refused by the sender itself, as they would cost it the connection to its peer. "
        "-1: what this socket itself would receive, its connector.pipe.max_recv_content_length. 0: no limit.",
    )
    fail_no_peers = define(
        "socket.fail_no_peers", bool, False, doc="Fail a send at once while no peer is connected, instead of waiting."
    )
    yield_messages = define(
        "socket.yield_messages", int, 1000, unit="messages", minimum=1,
        doc="After so many messages without a wait a greenlet lets others run.",
    )
    yield_bytes = define(
        "socket.yield_bytes", int, 1048576, unit="bytes", minimum=1,
        doc="After so many bytes without a wait a greenlet lets others run.",
    )


class connector:
    """``connector.*``: dialers, listeners and pipes."""

    pipe_limit = define(
        "connector.pipe_limit", int, -1, minimum=-1, checker=_check_pipe_limit,
        doc="How many pipes there may be at once; dialers and listeners pause there. -1: no limit.",
    )

    class dialer:
        """``connector.dialer.*``"""

        reconnect = define("connector.dialer.reconnect", bool, True, doc="Dial again when the pipe closes.")
        min_reconnect_time = define(
            "connector.dialer.min_reconnect_time", float, 0.1, unit="seconds", minimum=_SHORTEST,
            doc="The first wait before dialling again; it grows from there.",
        )
        max_reconnect_time = define(
            "connector.dialer.max_reconnect_time", float, 8.0, unit="seconds", minimum=0,
            doc="The longest wait before dialling again. 0: it grows without end.",
        )
        dial_async = define(
            "connector.dialer.dial_async", bool, False, doc="Return from dial before the connection is there."
        )
        dial_timeout = define(
            "connector.dialer.dial_timeout", float, 10.0, unit="seconds", minimum=_SHORTEST,
            doc="How long one attempt may take: host name, connection and opening handshake together.",
        )

    class listener:
        """``connector.listener.*``"""

        backlog = define(
            "connector.listener.backlog", int, 1024, minimum=1, maximum=65535,
            doc="How many connections the kernel may hold that are not accepted yet.",
        )
        max_handshaking = define(
            "connector.listener.max_handshaking", int, 128, minimum=1,
            doc="How many accepted connections may be in their opening handshake at once; more wait in the backlog.",
        )
        handshake_timeout = define(
            "connector.listener.handshake_timeout", float, 10.0, unit="seconds", minimum=_SHORTEST,
            doc="How long the opening handshake of an accepted connection may take.",
        )
        over_limit = define(
            "connector.listener.over_limit", "choice", "wait", choices=("wait", "refuse"),
            doc="What becomes of a peer that connects while the socket has its connector.pipe_limit of pipes: it waits "
            "in the backlog, or its connection is closed.",
        )

    class pipe:
        """``connector.pipe.*``"""

        raw = define("connector.pipe.raw", bool, False, doc="The peer speaks plain bytes instead of messages.")
        raw_recv_buf_size = define(
            "connector.pipe.raw_recv_buf_size", int, 4096, unit="bytes", minimum=1, maximum=_INT32,
            doc="The longest content that one read of a raw pipe makes.",
        )
        close_on_eof = define(
            "connector.pipe.close_on_eof", bool, True, doc="Close a raw pipe when its peer has ended its side."
        )
        max_recv_content_length = define(
            "connector.pipe.max_recv_content_length", int, 131072, unit="bytes", minimum=0, maximum=_UINT32,
            doc="A peer that announces a longer content is disconnected. 0: no limit.",
        )
        read_buffer = define(
            "connector.pipe.read_buffer", int, 0, unit="bytes", minimum=0, maximum=_INT32,
            doc="How much to ask the kernel for at a time, unless the pipe is raw. 0: as much as suits what comes.",
        )
        heartbeat_interval = define(
            "connector.pipe.heartbeat_interval", float, 0.0, unit="seconds", minimum=0,
            doc="Ask a peer that was silent for so long whether it is there. 0: never.",
        )
        heartbeat_timeout = define(
            "connector.pipe.heartbeat_timeout", float, 0.0, unit="seconds", minimum=0,
            doc="Close the pipe of a peer that was silent for so long. 0: twice the interval.",
        )
        negotiate_timeout = define(
            "connector.pipe.negotiate_timeout", float, 10.0, unit="seconds", minimum=_SHORTEST,
            doc="How long the negotiator may take over a new peer.",
        )


class transport:
    """``transport.*``: what belongs to one transport."""

    class tcp:
        """``transport.tcp.*``"""

        no_delay = define("transport.tcp.no_delay", bool, True, doc="Send small messages at once (TCP_NODELAY).")
        keep_alive = define("transport.tcp.keep_alive", bool, True, doc="Have the kernel probe silent peers.")
        keep_alive_period = define(
            "transport.tcp.keep_alive_period", float, 15.0, unit="seconds", minimum=1, maximum=32767,
            doc="How long a peer may be silent before the first probe, to whole seconds (TCP_KEEPIDLE).",
        )
        keep_alive_interval = define(
            "transport.tcp.keep_alive_interval", float, 15.0, unit="seconds", minimum=1, maximum=32767,
            doc="The time between probes, to whole seconds (TCP_KEEPINTVL).",
        )
        keep_alive_probes = define(
            "transport.tcp.keep_alive_probes", int, 9, minimum=1, maximum=127,
            doc="How many probes without an answer end the connection (TCP_KEEPCNT).",
        )
        user_timeout = define(
            "transport.tcp.user_timeout", float, 0.0, unit="seconds", minimum=0, maximum=2147483,
            doc="How long sent data may stay unacknowledged (TCP_USER_TIMEOUT). 0: the system's default.",
        )
        linger = define(
            "transport.tcp.linger", int, -1, unit="seconds", minimum=-1, maximum=32767,
            doc="SO_LINGER; 0 resets the connection when it is closed. -1: the system's default.",
        )
        read_buffer = define(
            "transport.tcp.read_buffer", int, 0, unit="bytes", minimum=0, maximum=_INT32,
            doc="The kernel's receive buffer (SO_RCVBUF). 0: the system's default.",
        )
        write_buffer = define(
            "transport.tcp.write_buffer", int, 0, unit="bytes", minimum=0, maximum=_INT32,
            doc="The kernel's send buffer (SO_SNDBUF). 0: the system's default.",
        )
        reuse_port = define(
            "transport.tcp.reuse_port", bool, False, doc="Let several processes listen at one port (SO_REUSEPORT)."
        )

    class tls:
        """``transport.tls.*``: files are read when dial() or listen() is called."""

        context: Option[Any] = define(
            "transport.tls.context", object, None, checker=_check_ssl_context,
            doc="An ssl.SSLContext to use as it is, in place of the files below.",
        )
        certfile = define(
            "transport.tls.certfile", str, "",
            doc="The certificate of this side, with the chain up to its authority (PEM). A listener needs one.",
        )
        keyfile = define(
            "transport.tls.keyfile", str, "", doc="The certificate's private key (PEM), if it is not in certfile."
        )
        password: Option[Any] = define(
            "transport.tls.password", object, None, checker=_check_callable,
            doc="For an encrypted key: a function that returns its password.",
        )
        cafile = define(
            "transport.tls.cafile", str, "",
            doc="The authorities whose certificates are accepted (PEM). A dialer without it takes the system's.",
        )
        verify: Option[bool | None] = define(
            "transport.tls.verify", object, None, checker=_check_verify, parser=_parse_verify,
            doc="Accept only peers with a certificate of an authority in cafile. None: a dialer always, a listener if "
            "it has a cafile. For a listener, true means mutual TLS; a dialer is told by transport.tls.insecure.",
        )
        server_hostname = define(
            "transport.tls.server_hostname", str, "",
            doc="The name that the listener's certificate must have, if it is not the host in the dialed address.",
        )
        insecure = define(
            "transport.tls.insecure", bool, False,
            doc="Dial without any check of the certificate: whoever sits on the way can read and change everything.",
        )

    class ws:
        """``transport.ws.*``: WebSocket, with TLS (``wss``) and without."""

        read_buffer_size = define(
            "transport.ws.read_buffer_size", int, 4096, unit="bytes", minimum=0, maximum=_INT32,
            doc="No effect here: reads are as large as the pipe asks for. Accepted because Go programs set it.",
        )
        write_buffer_size = define(
            "transport.ws.write_buffer_size", int, 4096, unit="bytes", minimum=0, maximum=_INT32,
            doc="No effect here: there is no buffer but the pipe's queue. Accepted because Go programs set it.",
        )
        ping_interval = define(
            "transport.ws.ping_interval", float, 20.0, unit="seconds", minimum=0,
            doc="Ping a peer that was silent for so long; connector.pipe.heartbeat_interval goes before it. 0: never.",
        )
        ping_timeout = define(
            "transport.ws.ping_timeout", float, 20.0, unit="seconds", minimum=0,
            doc="Close the pipe of a peer that is silent for so long after a ping. 0: never.",
        )
        headers: Option[Mapping[str, str] | Callable[[], Mapping[str, str]]] = define(
            "transport.ws.headers", object, {}, checker=_check_headers,
            doc="For dialers: further HTTP headers, such as Authorization or Origin, or a function that returns them.",
        )

        class listener:
            """``transport.ws.listener.*``"""

            check_origin = define(
                "transport.ws.listener.check_origin", bool, True,
                doc="Refuse pages that come from elsewhere than the host itself and transport.ws.listener.origins. "
                "A request without an Origin header is no page's. False: any page may connect.",
            )
            origins: Option[Collection[str | re.Pattern[str]]] = define(
                "transport.ws.listener.origins", object, (), checker=_check_origins,
                parser=lambda text: text.split(","),
                doc="Further origins whose pages may connect, like https://example.com; in an address with commas.",
            )
            origin_checker: Option[Callable[..., Any] | None] = define(
                "transport.ws.listener.origin_checker", object, None, checker=_check_function,
                doc="A function of the request that says whether its origin is right, in place of that check.",
            )
            authorize: Option[Callable[..., Any] | None] = define(
                "transport.ws.listener.authorize", object, None, checker=_check_function,
                doc="A function of the request, called before it is accepted. It may block. It returns None, or what "
                "is then the pipe's identity; to refuse it returns an HTTP status or raises.",
            )
            external_listen = define(
                "transport.ws.listener.external_listen", bool, False,
                doc="Bind nothing: connections are handed over by somebody else's HTTP server.",
            )
            pending_size = define(
                "transport.ws.listener.pending_size", int, 16, minimum=0, maximum=65535,
                doc="How many requests may wait for the socket to take them; later ones wait for their place.",
            )

    class ipc:
        """``transport.ipc.*``"""

        mode = define(
            "transport.ipc.mode", int, 0o600, checker=_check_mode, parser=_parse_mode,
            doc="The permissions of the socket file; in an address in octal digits, 0600.",
        )
        allow_uids: Option[Collection[int] | None] = define(
            "transport.ipc.allow_uids", object, None, checker=_check_uids, parser=_parse_uids,
            doc="The users whose processes may connect, by id; in an address 0,1000. None: whoever may open the file.",
        )

    class inproc:
        """``transport.inproc.*``: accepted because Go programs set them."""

        read_buffer = define(
            "transport.inproc.read_buffer", int, 8192, unit="bytes", minimum=0, maximum=_INT32,
            doc="No effect here: messages change hands without a buffer.",
        )

        class channel:
            """``transport.inproc.channel.*``"""

            buffer_size = define(
                "transport.inproc.channel.buffer_size", int, 16, unit="messages", minimum=0, maximum=_INT32,
                doc="No effect here: the peer's receive queue is the buffer.",
            )


class protocol:
    """``protocol.*``: what belongs to one protocol."""

    class pubsub:
        """``protocol.pubsub.*``"""

        max_patterns = define(
            "protocol.pubsub.max_patterns", int, 16384, minimum=1,
            doc="How many patterns those behind one pipe of a Pub may be subscribed to; more are refused.",
        )
        max_pattern_length = define(
            "protocol.pubsub.max_pattern_length", int, 1024, unit="bytes", minimum=1, maximum=65535,
            doc="How long a pattern may be that a Pub accepts.",
        )
        refresh_interval = define(
            "protocol.pubsub.refresh_interval", float, 5.0, unit="seconds", minimum=0,
            doc="How often a Sub repeats its subscriptions through a switch, behind which publishers may have come "
            "unseen. 0: never.",
        )
        expiry = define(
            "protocol.pubsub.expiry", float, 30.0, unit="seconds", minimum=0,
            doc="After how much silence a Pub forgets a subscriber behind a switch that used to repeat its "
            "subscriptions. 0: never.",
        )

    class stream:
        """``protocol.stream.*``"""

        window = define(
            "protocol.stream.window", int, 1048576, unit="bytes", minimum=65536, maximum=_INT32,
            doc="How many bytes a connection holds for a reader that does not read. Its peer then waits.",
        )
        acceptable = define(
            "protocol.stream.acceptable", bool, True, doc="Take connections that peers open; else they are refused."
        )
        accept_queue_size = define(
            "protocol.stream.accept_queue_size", int, 1024, minimum=1,
            doc="How many connections that peers have opened may wait for accept(); more are refused.",
        )
        keep_alive_idle = define(
            "protocol.stream.keep_alive_idle", float, 30.0, unit="seconds", minimum=0,
            doc="Ask the peer of a connection that was silent for so long whether it is there. 0: never.",
        )
        keep_alive_interval = define(
            "protocol.stream.keep_alive_interval", float, 1.0, unit="seconds", minimum=_SHORTEST,
            doc="The time between such questions.",
        )
        keep_alive_probes = define(
            "protocol.stream.keep_alive_probes", int, 7, minimum=1,
            doc="How many of them without an answer end the connection.",
        )
