"""Two hosts in one machine: two network namespaces, joined by a pair of virtual interfaces.

What one host writes to the folder of the test, the other does not see. So nothing joins them but the network::

    unshare -rnm python3 -m tests.backplane.hosts SCENARIO ENGINE FOLDER

is the first host, with the engine's server; the second is a child of it. It prints what came out, as JSON. Every part
is a process of its own; :mod:`tests.backplane.hostparts` has them.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from gevent import subprocess

from gmultisocket.testing import wait_until
from tests.backplane.kills import HISTORY
from tests.backplane.servers import BrokerServer, HubServer, JetStreamServer, RedisServer

ROOT = Path(__file__).resolve().parent.parent.parent
FIRST, SECOND = "10.99.0.1", "10.99.0.2"
SERVERS: dict[str, Callable[..., BrokerServer]] = {
    "nats": JetStreamServer, "redis": RedisServer, "hub": partial(HubServer, history=HISTORY),
}  # fmt: skip
#: Seconds that a step may take on a busy machine.
PATIENCE = 40


def do(command: str) -> None:
    subprocess.run(shlex.split(command), check=True, stdin=subprocess.DEVNULL)


class Part:
    """A process: it prints a line of JSON when it has done a step, and begins the next one when it is told to."""

    def __init__(self, command: list[str], environ: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)} | environ, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def read(self) -> Any:
        line = self._process.stdout.readline()
        assert line, "a part has ended before its time"
        return json.loads(line)

    def go(self) -> None:
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()


class Hosts:
    """The two hosts, seen from the first one."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self.folder = folder
        do("ip link set lo up")
        second = stack.enter_context(Part(["unshare", "-nm", "sleep", "1000"], {}))._process
        here = os.readlink("/proc/self/ns/mnt")
        wait_until(lambda: os.readlink(f"/proc/{second.pid}/ns/mnt") != here, PATIENCE)
        self._inside = ["nsenter", "-t", str(second.pid), "-n", "-m"]
        do(f"ip link add gms0 type veth peer name gms1 netns {second.pid}")
        do(f"ip addr add {FIRST}/24 dev gms0")
        do("ip link set gms0 up")
        inside = " ".join(self._inside)
        for command in (f"mount -t tmpfs tmpfs {folder}", f"ip addr add {SECOND}/24 dev gms1", "ip link set gms1 up",
                        "ip link set lo up"):  # fmt: skip
            do(f"{inside} {command}")

    def run(self, second: bool, words: list[str], environ: dict[str, str]) -> Part:
        """Start a part on one of the hosts."""
        return self._stack.enter_context(Part([*(self._inside if second else []), *words], environ))

    def part(self, second: bool, name: str, *arguments: object, **environ: str) -> Part:
        words = [sys.executable, "-m", "tests.backplane.hostparts", name, *map(str, arguments)]
        return self.run(second, words, environ)


def fan_out(hosts: Hosts, server: BrokerServer) -> Any:
    """A gunicorn with two workers on each host, 20 browsers at each, 200 POSTs: what each browser has got."""
    clients = []
    for second in (False, True):
        port = 8000
        hosts.run(
            second,
            [sys.executable, "-m", "gunicorn", "-c", "python:gmultisocket.contrib.gunicorn", "-k", "gevent", "-w", "2",
             "-b", f"127.0.0.1:{port}", "--log-level", "warning", "tests.backplane.hostparts:application"],
            {"PLANE": server.url},
        )  # fmt: skip
        clients.append(hosts.part(second, "browsers", port, 20, 100, "second" if second else "first"))
    for client in clients:
        client.read()
    for client in clients:
        client.go()
    return [client.read() for client in clients]


def cut(hosts: Hosts, server: BrokerServer) -> Any:
    """A plane on each host publishes and subscribes; then nothing of the second host arrives for some seconds.

    Half of what they publish is of topics with history.
    """
    planes = [hosts.part(second, "plane", server.url) for second in (False, True)]
    for plane in planes:
        plane.read()
    for plane in planes:
        plane.go()
    for plane in planes:
        plane.read()
    do(f"iptables -A INPUT -s {SECOND} -j DROP")
    planes[1].go()
    planes[1].read()  # it has noticed
    do(f"iptables -D INPUT -s {SECOND} -j DROP")
    planes[1].go()
    planes[1].read()  # it is back
    for plane in planes:
        plane.go()
    for plane in planes:
        plane.read()  # it has published its last message, and all are confirmed or given up
    for plane in planes:
        plane.go()
    return [plane.read() for plane in planes]


def late(hosts: Hosts, server: BrokerServer) -> Any:
    """A plane on the second host is cut off, and comes back while its kernel still has bytes of the lost connection.

    Returns:
        The last value that it has published, and the one that a newcomer gets.
    """
    publisher = hosts.part(True, "publisher", server.url)
    publisher.read()
    rules = [f"INPUT -s {SECOND}", f"OUTPUT -d {SECOND}"]
    for rule in rules:
        do(f"iptables -A {rule} -j DROP")
    publisher.go()
    publisher.read()  # it has noticed
    for rule in rules:
        do(f"iptables -D {rule} -j DROP")
    publisher.go()
    return [publisher.read(), hosts.part(False, "newcomer", server.url).read()]


SCENARIOS = {"fan_out": fan_out, "cut": cut, "late": late}


def main() -> None:
    scenario, engine, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    with ExitStack() as stack:
        hosts = Hosts(stack, folder)
        server = stack.enter_context(SERVERS[engine](folder, host=FIRST))
        print(json.dumps(SCENARIOS[scenario](hosts, server)))


if __name__ == "__main__":
    main()
