"""The ``gmultisocket`` command. Each subcommand has a module; they share ``common`` and ``printing``.

A subcommand's module has two functions. ``add(subparsers)`` declares the arguments. ``run(arguments)`` runs in a
greenlet, does the work and returns the exit status. Signals, errors and exit statuses are handled here.

Exit statuses: 0 success, 1 something failed, 2 wrong arguments, 130 a signal ended the command before its work was
done. A signal is the normal end of ``switch``, and of ``recv`` and ``cat`` without ``--count``: then the status is 0.
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
#: 128 + SIGPIPE, as if the system had ended the program because it wrote to a pipe that nobody reads.
_PIPE_CLOSED = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. Blocks until it has ended.

    Args:
        argv: the arguments, without the program's name; None for the arguments of the process.
    """
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except MultiSocketError as error:
        print(f"gmultisocket: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Nobody reads our output any more. The interpreter must not try to flush the rest when it exits.
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
    """Run the command in a greenlet, which a signal kills: the sockets close, and nothing is printed."""
    worker: Greenlet[..., Any] = gevent.spawn(_catch, arguments)
    handlers = [gevent.signal_handler(number, worker.kill, block=False) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        outcome = worker.get()
    finally:
        for handler in handlers:
            handler.cancel()
    if isinstance(outcome, GreenletExit):
        return _INTERRUPTED
    if isinstance(outcome, Exception):
        raise outcome
    return int(outcome)


def _catch(arguments: argparse.Namespace) -> int | Exception:
    """Run the command, and return an exception instead of raising it: gevent would print a traceback."""
    try:
        status: int = arguments.run(arguments)
        return status
    except Exception as error:
        return error
