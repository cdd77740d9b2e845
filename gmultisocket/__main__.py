"""``python3 -m gmultisocket``: the same as the ``gmultisocket`` command."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
