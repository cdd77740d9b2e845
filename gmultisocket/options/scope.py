"""Option values of one socket, dialer, listener or pipe. An option that is not set there is inherited from its parent.

When a value is set, all checks run before it, and all hooks after it. A refused change leaves everything as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload
from weakref import WeakKeyDictionary

from ..log import get_logger
from .option import Option, lookup
from .places import Place

__all__ = ["DialerOptions", "ListenerOptions", "OptionValues", "Options", "PipeOptions", "PlaneOptions", "follow"]

logger = get_logger("gmultisocket.options", at_once=True)

T = TypeVar("T")

if TYPE_CHECKING:
    from .values import OptionValues
else:
    OptionValues = Mapping[Any, Any]


class _Hook:
    """A hook for one option, and maybe a check."""

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
    """Hooks of one object for several options. One small entry in its scope, as there may be many such objects."""

    __slots__ = ("_setters", "_target")

    def __init__(self, target: Any, setters: Mapping[Option[Any], Callable[[Any, Any], object]]) -> None:
        self._target = target
        self._setters = setters

    def of(self, option: Option[Any]) -> _Hook | None:
        setter = self._setters.get(option)
        return None if setter is None else _Hook(option, lambda old, new: setter(self._target, new))


class Options:
    """The option values of one object. A value that is not set here comes from ``parent``, or else is the default.

    Too slow for a loop over messages: an object that needs a value there keeps a copy, and updates it with
    :func:`follow` or :meth:`on_change`. A scope keeps its parent alive; a parent has only weak references to its
    children.
    """

    # A scope without values and hooks costs its slots only: a server has one for each pipe.
    __slots__ = ("__weakref__", "_children", "_hooks", "_parent", "_values")

    #: Whose options they are.
    _place: ClassVar[Place] = "socket"

    def __init__(self, values: OptionValues | None = None, parent: Options | None = None) -> None:
        """Make a scope.

        Args:
            values: the values to set in this scope, by name or option.
            parent: the scope to inherit from.

        Raises:
            UnknownOption: ``values`` contains a name that is not defined.
            MisplacedOption: ``values`` contains an option that has no effect here.
            BadOptionValue: ``values`` contains a wrong value.
        """
        self._parent = parent
        self._values: dict[Option[Any], Any] | None = None
        self._hooks: list[_Hook | _Watch] | None = None
        self._children: WeakKeyDictionary[Options, None] | None = None
        if values:
            options = [(lookup(name), value) for name, value in values.items()]
            for option, _ in options:
                option.check_place(self._place)
            self._values = {option: option.validate(value) for option, value in options}

    def __repr__(self) -> str:
        values = {option.name: option.shown(value) for option, value in (self._values or {}).items()}
        return f"Options({values!r})"

    @overload
    def get(self, option: Option[T]) -> T: ...
    @overload
    def get(self, option: str) -> Any: ...
    def get(self, option: str | Option[Any]) -> Any:
        """Return the value in force: this scope's own, or else that of the nearest scope above, or else the default.

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
        """Return whether the option is set in this scope itself."""
        return self._values is not None and lookup(option) in self._values

    def own(self) -> dict[str, Any]:
        """Return the values that are set in this scope itself, by name."""
        return {option.name: value for option, value in (self._values or {}).items()}

    @overload
    def set(self, option: Option[T], value: T) -> None: ...
    @overload
    def set(self, option: str, value: Any) -> None: ...
    def set(self, option: str | Option[Any], value: Any) -> None:
        """Set a value for this scope, and for those below it that do not set the option themselves.

        First all checks of all these scopes run. Then the value is set. Then the hooks run, those of this scope first.
        If a check or a hook raises, the error passes through and nothing has changed: hooks that had run are called
        again with old and new value exchanged.

        Raises:
            UnknownOption: no option has this name.
            MisplacedOption: it has no effect here.
            BadOptionValue: the value is wrong.
        """
        option = lookup(option)
        option.check_place(self._place)
        value = option.validate(value)
        hooks = list(self._hooks_of(option))
        for hook in hooks:
            if hook.check is not None:
                hook.check(value)
        old = self.get(option)
        values = self._values = {} if self._values is None else self._values
        had, own = option in values, values.get(option)
        values[option] = value
        done = 0
        try:
            for hook in hooks:
                hook.changed(old, value)
                done += 1
        except BaseException:
            if had:
                values[option] = own
            else:
                values.pop(option, None)
            _undo(hooks[:done], old, value)
            raise

    def on_change(
        self, option: str | Option[T], hook: Callable[[T, T], object], check: Callable[[T], object] | None = None
    ) -> Callable[[], None]:
        """Call ``hook(old, new)`` after each change of the value in force here.

        Args:
            option: the option to watch.
            hook: called when the option is set here, or in a scope above while it is not set here. Must not block, nor
                set the same option. Should not raise: ``check`` can refuse a value before any hook sees it.
            check: called with the new value before it is set; raises to refuse it. Must not block, nor change anything.

        Returns:
            A function that removes the hook.

        Raises:
            UnknownOption: no option has this name.
        """
        entry = _Hook(lookup(option), hook, check)
        self._add(entry)

        def remove() -> None:
            if self._hooks is not None and entry in self._hooks:
                self._hooks.remove(entry)

        return remove

    def watch(self, target: T, setters: Mapping[Option[Any], Callable[[T, Any], object]]) -> None:
        """Call ``setters[option](target, new)`` after each change of an option, as :meth:`on_change` does.

        Args:
            target: the first argument of the setters; the scope keeps it alive.
            setters: by option. Should be a constant that many targets share: a watch then costs little memory, for any
                number of options.

        :func:`follow` also sets the present values.
        """
        self._add(_Watch(target, setters))

    def _add(self, entry: _Hook | _Watch) -> None:
        if self._hooks is None:
            self._hooks = []
            self._link_parent()
        self._hooks.append(entry)

    def _hooks_of(self, option: Option[Any]) -> Iterator[_Hook]:
        for scope in self._inheriting(option):
            for entry in scope._hooks or ():
                hook = entry.of(option)
                if hook is not None:
                    yield hook

    def _link_parent(self) -> None:
        """Add this scope to its parent's children. Done with the first hook only: most scopes never get one."""
        if self._parent is None:
            return
        if self._parent._children is None:
            self._parent._children = WeakKeyDictionary()
            self._parent._link_parent()
        self._parent._children[self] = None

    def _inheriting(self, option: Option[Any]) -> Iterator[Options]:
        """Yield this scope and those below that inherit its value of the option."""
        yield self
        for scope in list(self._children or ()):
            if not scope.has_own(option):
                yield from scope._inheriting(option)


class DialerOptions(Options):
    """The options of a dialer, for its pipes too."""

    __slots__ = ()
    _place = "dialer"


class ListenerOptions(Options):
    """The options of a listener, for its pipes too."""

    __slots__ = ()
    _place = "listener"


class PipeOptions(Options):
    """The options of one pipe."""

    __slots__ = ()
    _place = "pipe"


class PlaneOptions(Options):
    """The options of a backplane."""

    __slots__ = ()
    _place = "plane"


def follow(options: Options, target: T, setters: Mapping[Option[Any], Callable[[T, Any], object]]) -> None:
    """Call ``setters[option](target, value)`` for each option, now and after each change of its value in force.

    For objects that keep copies of values for hot code. Never blocks.

    Args:
        options: the scope to follow.
        target: as for :meth:`Options.watch`.
        setters: as for :meth:`Options.watch`.
    """
    for option, setter in setters.items():
        setter(target, options.get(option))
    options.watch(target, setters)


def _undo(hooks: list[_Hook], old: Any, new: Any) -> None:
    """Undo a change in the hooks that had run, the last one first."""
    failures: list[tuple[str, BaseException]] = []
    for hook in reversed(hooks):
        try:
            hook.changed(new, old)
        except BaseException as error:
            failures.append((hook.option.name, error))
    for name, failure in failures:
        if not isinstance(failure, Exception):
            raise failure
        # The caller gets the error that refused the change. This one must not replace it.
        logger.error("a hook of option %s failed while a refused change was undone", name, exc_info=failure)
