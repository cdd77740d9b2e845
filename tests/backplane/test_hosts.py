"""A Backplane over two hosts: two network namespaces.

These tests take some seconds each: they start gunicorns, or wait until a server that is cut off is missed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from gevent import subprocess

from tests.backplane.hosts import SERVERS
from tests.faults.process import ROOT, needs

pytestmark = needs("unshare -rnm ip link", "unshare -rn iptables -L -n", "nsenter --version")

engines = pytest.mark.parametrize("engine", SERVERS)


def run(scenario: str, engine: str, folder: Path) -> Any:
    SERVERS[engine](folder)  # skips where the server is not installed
    command = ["unshare", "-rnm", sys.executable, "-m", "tests.backplane.hosts", scenario, engine, str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=55,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@engines
def test_every_browser_of_both_hosts_has_every_post_once(engine: str, tmp_path: Path) -> None:
    clients = run("fan_out", engine, tmp_path)
    browsers = [got for client in clients for got in client]
    assert len(browsers) == 40
    posts = sorted(f"{name} {number}" for name in ("first", "second") for number in range(100))
    for got in browsers:
        assert sorted(got) == posts


@engines
def test_a_host_that_is_cut_off_loses_nothing_that_is_not_counted(engine: str, tmp_path: Path) -> None:
    near, far = run("cut", engine, tmp_path)
    for plane in (near, far):
        counters = plane["counters"]
        given_up = counters["unconfirmed"] + sum(counters["dropped"].values())
        assert counters["sent"] == counters["confirmed"] + given_up + counters["buffered"]
        assert counters["sent"] >= sum(map(len, plane["sent"].values()))
        assert counters["buffered"] == 0
        assert plane["here"] == len(plane["sent"]["numbers"]), "a subscriber in the same process has missed something"
        for numbers in (*plane["got"]["numbers"].values(), *plane["got"]["h"].values()):
            assert numbers == sorted(set(numbers)), "a publication came twice, or in the wrong order"
    assert near["events"] == [] and near["counters"]["gaps"] == 0
    assert far["events"] == ["down", "gap", "up"] and far["counters"]["gaps"] == 1
    # The first host was connected throughout: what it misses is among what the second one has no confirmation for.
    missed = set(far["sent"]["numbers"][:-1]) - set(near["got"]["numbers"][far["name"]])  # but for the last one
    assert missed <= set(far["lost"])
    assert near["lost"] == []
    # Of topics with history, both have all that was confirmed, also of the time for which one was cut off.
    for plane in (near, far):
        assert plane["gaps"] == []
        for publisher in (near, far):
            missed = set(publisher["sent"]["h"][:-1]) - set(plane["got"]["h"][publisher["name"]])
            assert missed <= set(publisher["lost"])


@engines
def test_what_a_lost_connection_still_holds_does_not_come_after_newer_publications(engine: str, tmp_path: Path) -> None:
    last, present = run("late", engine, tmp_path)
    assert present == last
