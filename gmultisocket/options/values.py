"""The type of option values, by name or by option, as a program passes them to a socket, dialer or listener.

For type checkers only; the library does not import this module when it runs. It accepts

* ``{"socket.no_recv": True}``: the names are checked, and the types of the values;
* ``{options.socket.no_recv: True}``: the keys are checked;
* a variable of the type ``dict[str, Any]`` or ``Mapping[str, Any]``, where nothing can be checked.

It refuses a variable of the type that checkers infer for a dict by name, ``dict[str, bool]`` for example: annotate such
a variable with ``OptionValues``.
"""

from __future__ import annotations

from collections.abc import ItemsView, Mapping
from typing import Any, Protocol, TypeAlias, final

from .names import OptionsByName
from .option import Option

__all__ = ["OptionValues"]


@final
class _Unchecked:
    """No value has this type except ``Any``: a ``dict[str, Any]`` is accepted, and a dict of known values is not."""


class _MixedKeys(Protocol):
    """A ``dict[object, ...]``: mypy infers it for keys that are options of different types."""

    def __getitem__(self, key: object, /) -> Any: ...
    def items(self) -> ItemsView[Any, Any]: ...


OptionValues: TypeAlias = OptionsByName | Mapping[Option[Any], Any] | Mapping[str, _Unchecked] | _MixedKeys
