"""Acknowledgements that a hook holds back: the subscription is in effect here, but not yet where publications start.

There is at most one for each subscription. A subscription that ends takes it along.
"""

from __future__ import annotations

from collections.abc import Callable

from .. import usercode
from ..core.pipes.pipe import Pipe
from .pubsubwire import Ask
from .rights import RemoteSub

__all__ = ["Hold", "Holding"]

#: See ``Pub.hold_acknowledgements``.
Hold = Callable[[RemoteSub, str, Callable[[], None]], bool]


class _Held:
    """An acknowledgement that is held back.

    Attributes:
        ask: the last 0x05 that came for the subscription, None without one.
    """

    __slots__ = ("ask",)

    def __init__(self, ask: Ask | None) -> None:
        self.ask = ask


class Holding:
    """The acknowledgements that are held back at one Pub.

    Args:
        answer: called as ``answer(remote, pattern, ask)`` for one that is released.

    Attributes:
        hook: decides which are held back; None holds back none.
    """

    __slots__ = ("__weakref__", "_answer", "_held", "hook")

    def __init__(self, answer: Callable[[RemoteSub, str, Ask | None], object]) -> None:
        self._answer = answer
        self.hook: Hold | None = None
        self._held: dict[Pipe, dict[tuple[bytes, str], _Held]] = {}

    def hold(self, remote: RemoteSub, pattern: str, ask: Ask | None, is_new: bool) -> bool:
        """Return whether the acknowledgement of a subscription is held back."""
        pipe, source = remote
        key = (source, pattern)
        held = self._held.get(pipe, {}).get(key)
        if held is not None:
            held.ask = ask or held.ask
            return True
        if self.hook is None or not is_new:
            return False
        mine = self._held.setdefault(pipe, {})[key] = _Held(ask)

        def release() -> None:
            if self._held.get(pipe, {}).get(key) is mine:
                self.forget(pipe, source, pattern)
                self._answer(remote, pattern, mine.ask)

        try:
            holds = self.hook(remote, pattern, release)
        except BaseException as error:
            # No error of the hook may end the greenlet that calls it: that reads from the pipe, or asks ``authorize``.
            usercode.report("gmultisocket.protocol", "a hook for acknowledgements failed", error, self)
            holds = False
        if not holds and self._held.get(pipe, {}).get(key) is mine:
            self.forget(pipe, source, pattern)
            return False
        # If it was released already, it was answered.
        return True

    def holds(self, pipe: Pipe, source: bytes, pattern: str) -> bool:
        """Return whether the acknowledgement of a subscription is held back just now."""
        return (source, pattern) in self._held.get(pipe, ())

    def forget(self, pipe: Pipe, source: bytes, pattern: str) -> None:
        """Forget the acknowledgement of a subscription, if it is held back."""
        held = self._held.get(pipe)
        if held is not None and held.pop((source, pattern), None) is not None and not held:
            del self._held[pipe]

    def remove_pipe(self, pipe: Pipe) -> None:
        """Forget all acknowledgements for a pipe that has closed."""
        self._held.pop(pipe, None)
