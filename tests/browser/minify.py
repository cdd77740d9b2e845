"""Makes ``gmultisocket/browser/gmultisocket.min.js``, which servers send to pages, from the source beside it.

``python3 -m tests.browser.minify`` in a checkout writes the file; ``test_browser.py`` says when that is necessary. It
gets terser from the npm registry. Neither the library nor its installation needs terser.
"""

from __future__ import annotations

import json
import subprocess
from hashlib import sha256
from pathlib import Path

__all__ = ["BUILT", "SOURCE", "build", "header"]

_FOLDER = Path(__file__).resolve().parent.parent.parent / "gmultisocket/browser"
SOURCE = _FOLDER / "gmultisocket.js"
BUILT = _FOLDER / "gmultisocket.min.js"
#: One version only: another one may find another text for the same program.
TERSER = "npx --yes --fetch-retries=0 terser@5.51.4"
#: Without two steps that make the text shorter, but its compressed form longer.
_OPTIONS = "--module --ecma 2022 --compress passes=3,lhs_constants=false,reduce_funcs=false --mangle"


def header() -> bytes:
    """Return the first line that the file should have. It names the version and the source."""
    version = json.loads((_FOLDER / "package.json").read_text())["version"]
    return f"// gmultisocket {version} (MIT) {sha256(SOURCE.read_bytes()).hexdigest()[:8]}\n".encode()


def build() -> bytes:
    """Return the content that the file should have.

    Raises:
        subprocess.CalledProcessError: npm cannot get terser, or terser does not understand the source.
    """
    command = [*TERSER.split(), str(SOURCE), *_OPTIONS.split()]
    return header() + subprocess.run(command, check=True, capture_output=True, timeout=60).stdout.rstrip() + b"\n"


if __name__ == "__main__":
    BUILT.write_bytes(build())
