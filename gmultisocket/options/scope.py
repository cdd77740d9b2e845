"""The values of one socket, dialer, listener or pipe: what is not set there comes from above.

A change is checked by everybody whom it concerns before it is there, and heard of by them afterwards; a refused one
leaves everything as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, overload
from weakref import WeakKeyDictionary

from .option import Option, lookup

__all__ = ["OptionValues", "Options", "follow"]

logger = logging.getLogger("gmultisocket.options")

T = TypeVar("T")

if TYPE_CHECKING:
    from .values import OptionValues
else:
    OptionValues = Mapping[Any, Any]


class _Hook:
    """Something to call for one option."""

    __slots__ = ("changed", "check", "option")

    def __init__(
        self,
        option: Option[Any],
        changed: Callable[[Any, Any], object],
        check: Callable[[Any], object] | None = None,
    ) -> None:
        self.option = option
        self.changed = changed
        self.check = check

    def of(self, option: Option[Any]) -> _Hook | None:
        return self if option is self.option else None


class _Watch:
    """An object to be told of several options: one entry in its scope, as there may be very many such objects."""

    __slots__ = ("_takes", "_target")

    def __init__(self, target: Any, takes: Mapping[Option[Any], Callable[[Any, Any], object]]) -> None:
        self._target = target
        self._takes = takes

    def of(self, option: Option[Any]) -> _Hook | None:
        take = self._takes.get(option)
        return None if take is None else _Hook(option, lambda old, new: take(self._target, new))


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
