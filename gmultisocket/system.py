"""Whether this operating system can run the library. Imported first, so that the answer is an error in plain words."""

from __future__ import annotations

import sys

__all__: list[str] = []

if sys.platform in ("win32", "cygwin", "emscripten", "wasi"):
    raise ImportError(
        f"gmultisocket does not run on {sys.platform}: it needs unix sockets, fork and other calls of POSIX systems. "
        "Use Linux, macOS or a BSD; on Windows, use WSL."
    )
