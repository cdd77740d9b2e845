"""What may be the content of a message."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["as_content"]


def as_content(content: Buffer) -> bytes:
    """Return the bytes of a bytes-like object. A mutable one is copied, so the caller may change it after sending.

    Raises:
        TypeError: it is not bytes-like. Text must be encoded by the caller, who knows how.
    """
    if isinstance(content, bytes):
        return content
    if isinstance(content, str):
        raise TypeError("content must be bytes-like, not str: encode it, e.g. content.encode()")
    try:
        return bytes(memoryview(content))
    except TypeError:
        raise TypeError(f"content must be bytes-like, not {type(content).__name__}") from None
