"""Makes ``gmultisocket/options/names.py`` from the definitions of the options.

``python3 -m tests.optionnames`` in a checkout writes the file; ``test_options.py`` says when that is necessary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from gmultisocket.options import Option, standard

PATH = Path(__file__).resolve().parent.parent / "gmultisocket" / "options" / "names.py"

_HEAD = '''\
"""The names of all options and the types of their values, for type checkers.

Generated from ``standard.py`` by ``python3 -m tests.optionnames``. The library does not import it when it runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from ssl import SSLContext
from typing import Any, Literal, TypedDict

__all__ = ["OptionsByName"]

OptionsByName = TypedDict(
    "OptionsByName",
    {
'''
_TAIL = """\
    },
    total=False,
)
"""


def source() -> str:
    """Return the text that the file should have."""
    groups = (standard.socket, standard.connector, standard.transport, standard.protocol, standard.plane)
    lines = [f'        "{name}": {kind},\n' for group in groups for name, kind in _entries(group)]
    return _HEAD + "".join(lines) + _TAIL


def _entries(group: type) -> Iterator[tuple[str, str]]:
    """Yield the name and the type of the value for each option of a group and of the groups in it."""
    annotations = group.__annotations__
    for attribute, value in vars(group).items():
        if isinstance(value, Option):
            yield value.name, _type_of(value, annotations.get(attribute, ""))
        elif isinstance(value, type):
            yield from _entries(value)


def _type_of(option: Option[object], annotation: str) -> str:
    if option.kind == "choice":
        return f"Literal[{', '.join(map(json.dumps, option.choices))}]"
    if option.kind == "object":
        return annotation.removeprefix("Option[").removesuffix("]")
    return option.kind


if __name__ == "__main__":
    PATH.write_text(source())
