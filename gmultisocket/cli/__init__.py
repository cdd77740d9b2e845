"""The ``gmultisocket`` command. One module a subcommand; what they share is in ``common``.

A subcommand's module has ``add(subparsers)``, which declares its arguments, and ``run(arguments)``, which does the work
in a greenlet of its own and returns the exit status. Here is what stands around that: signals, errors, exit statuses.

Exit statuses: 0 all went well, 1 something failed, 2 wrong arguments, 130 ended by a signal before the work was done.
A command whose work has no end of its own (``recv`` without a count, ``cat``, ``switch``) ends with 0 by a signal.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import gevent
from gevent import Greenlet, GreenletExit

from .. import __version__
from ..errors import MultiSocketError
from . import cat, demo, options, recv, send, switch

__all__ = ["main"]

_INTERRUPTED = 130
#: As if the system had ended the program for writing to a pipe that nobody reads: 128 + SIGPIPE.
_PIPE_CLOSED = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. Blocks until it has ended.

    Args:
        argv: the arguments, without the program's name; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except MultiSocketError as error:
        print(f"gmultisocket: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read our output has gone. The interpreter must not try to flush the rest on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gmultisocket",
        description="Send, receive and forward messages over tcp, ipc, inproc and WebSocket.",
        epilog="'gmultisocket COMMAND --help' explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"gmultisocket {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (demo, send, recv, cat, switch, options):
        command.add(subparsers)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    """Run the command in a greenlet, which a signal ends as a kill does: sockets close, nothing is printed."""
    worker: Greenlet[..., Any] = gevent.spawn(_quietly, arguments)
    watchers = [gevent.signal_handler(number, worker.kill, block=False) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        outcome = worker.get()
    finally:
        for watcher in watchers:
            watcher.cancel()
    if isinstance(outcome, GreenletExit):
        return _INTERRUPTED
    if isinstance(outcome, Exception):
        raise outcome
    return int(outcome)


def _quietly(arguments: argparse.Namespace) -> int | Exception:
    """Return an error instead of raising it: gevent prints what a greenlet raises."""
    try:
        status: int = arguments.run(arguments)
        return status
    except Exception as error:
        return error
