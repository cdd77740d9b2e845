"""What holds for every test: the oracle, and the two ways of running, with and without monkey patching."""

from __future__ import annotations

import os

import gevent
import pytest
from gevent import monkey
from hypothesis import HealthCheck, settings

pytest_plugins = ("tests.oracle", "tests.addresses")

# No test depends on the speed of the machine.
settings.register_profile("gmultisocket", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gmultisocket")


def pytest_configure(config: pytest.Config) -> None:
    # Patching comes before everything else: `python3 -m gevent.monkey --module pytest`. Too late here.
    if os.environ.get("GMULTISOCKET_TEST_PATCHED") and not monkey.is_module_patched("socket"):
        raise pytest.UsageError("GMULTISOCKET_TEST_PATCHED is set, and nothing is patched")


def pytest_report_header(config: pytest.Config) -> str:
    return f"gevent: {gevent.__version__}, {'monkey patched' if monkey.is_module_patched('socket') else 'not patched'}"
