"""Typed options: what can be set, what values are allowed, and scopes that inherit them.

:class:`Option` is one declaration; :func:`define`, :func:`lookup` and :func:`describe` are the registry of all of them;
:class:`Options` holds the values of one socket, dialer, listener or pipe. Every option that this library reads is an
attribute of ``socket``, ``connector``, ``transport`` or ``protocol``. What an option does is the business of whoever
reads it; the text form of an address is that of :mod:`gmultisocket.address`.

Nothing here blocks, switches greenlets or takes a lock.

Source: Go ``options/options.go``. Different on purpose: a bad value is an error and never silently the default, and a
refused change leaves everything as it was.
"""

from .checks import is_header
from .option import Kind, Option, define, describe, lookup
from .scope import Options, OptionValues, follow
from .standard import connector, protocol, socket, transport

__all__ = [
    "Kind",
    "Option",
    "OptionValues",
    "Options",
    "connector",
    "define",
    "describe",
    "follow",
    "is_header",
    "lookup",
    "protocol",
    "socket",
    "transport",
]
