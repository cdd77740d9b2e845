"""Typed options: their declarations, their allowed values, and scopes that inherit values.

:class:`Option` is one declaration; :func:`define`, :func:`lookup` and :func:`describe` are the registry of all options;
:class:`Options` holds the values of one socket, dialer, listener or pipe. Every option of this library is an attribute
of ``socket``, ``connector``, ``transport``, ``protocol`` or ``plane``. The code that reads an option gives it its
effect. The syntax of options in an address is that of :mod:`gmultisocket.address`.

``OptionValues`` is the type of a dict of values by name or option. Type checkers know the names and the types of their
values; see ``values.py``.

Nothing here blocks, switches greenlets or takes a lock.

Source: Go ``options/options.go``. Different on purpose: a wrong value is an error, not silently the default; and a
refused change leaves everything as it was.
"""

from .checks import is_header
from .option import Kind, Option, define, describe, lookup
from .scope import DialerOptions, ListenerOptions, Options, OptionValues, PipeOptions, PlaneOptions, follow
from .standard import connector, plane, protocol, socket, transport

__all__ = [
    "DialerOptions",
    "Kind",
    "ListenerOptions",
    "Option",
    "OptionValues",
    "Options",
    "PipeOptions",
    "PlaneOptions",
    "connector",
    "define",
    "describe",
    "follow",
    "is_header",
    "lookup",
    "plane",
    "protocol",
    "socket",
    "transport",
]
