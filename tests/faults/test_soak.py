"""The soak: hours of faults leave nothing behind. Here it lasts some seconds.

``GMULTISOCKET_TEST_SOAK=3600 python3 -m pytest tests/faults/test_soak.py`` is an hour of it, with 1000 peers.
"""

from __future__ import annotations

import os

import pytest

from tests.faults.process import run_script

SECONDS = int(os.environ.get("GMULTISOCKET_TEST_SOAK", "5"))
PEERS = 1000 if SECONDS >= 600 else 100 if SECONDS >= 60 else 50


# In a process of its own, because what the tests before it have left in memory is not its own.
@pytest.mark.timeout(SECONDS + 180)
def test_nothing_grows_under_faults_of_every_kind() -> None:
    script = "import sys; from tests.faults.soak import soak; print(soak(int(sys.argv[1]), int(sys.argv[2]), 51))"
    told = run_script(script, SECONDS, PEERS, timeout=SECONDS + 170)
    print(told)
    assert "as before" in told
