"""Objects whose attributes are set once.

A frozen dataclass would do the same, but importing ``dataclasses`` takes a tenth of the time of importing gevent.
"""

from __future__ import annotations

__all__ = ["Frozen"]


class Frozen:
    """Refuses to change or delete an attribute that has a value. Subclasses have ``__slots__``."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        if hasattr(self, name):
            raise AttributeError(f"{name!r} of a {type(self).__name__} cannot be changed", name=name, obj=self)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name!r} of a {type(self).__name__} cannot be deleted", name=name, obj=self)
