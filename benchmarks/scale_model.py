"""How a system of workers, subscribers and a hub grows: a model, its constants measured here, and what follows.

::

    python3 -m benchmarks.scale_model                # measure, check the model, and extrapolate: about eight minutes
    python3 -m benchmarks.scale_model --quick        # only shows that everything works
    python3 -m benchmarks.scale_model --json         # for programs

A process publishes on a Backplane; a hub passes on; each worker has a Pub for its subscribers, plain tcp connections of
another process. All subscribers want everything. What is measured is processor time, that of each process by itself, as
wall time on few cores depends on all that runs there, and resident memory.

Every part of the work costs something for each time that publications come, such as system calls, and something for
each publication: ``begin / together + each`` microseconds a publication, where ``together`` publications come at a
time. One that comes alone has a cost of its own: of several, the first may leave ahead of the others, which makes two
system calls. The constants come from some systems (:data:`MEASURED`), and are checked with others (:data:`CHECKED`).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, NamedTuple

from . import takers
from .harness import Amount, Peer, Plan, started
from .memory import SETTLE_TIME, resident_kib
from .report import machine
from .worker import await_ack, hear, listen_for_acks, raise_descriptor_limit, say

__all__ = [
    "ALONE",
    "CHECKED",
    "CROWD",
    "FEW",
    "LARGE_CROWD",
    "MANY",
    "MEASURED",
    "Constants",
    "Cost",
    "Estimate",
    "Spent",
    "System",
    "Target",
    "constants_of",
    "estimate",
    "predict",
]

_SIZE = 64
_TOPIC = takers.pattern(0)
#: Bytes of a publication between a Pub and a subscriber, besides its topic and its content.
_OVERHEAD = 10
#: Seconds that one system may take.
_SECONDS = 150.0
#: Subscribers of a worker: few, and the most that a :class:`Target` gives to one.
CROWD, LARGE_CROWD = 500, 10_000


# The model


class Cost(NamedTuple):
    """What a part of the work costs, in microseconds of processor time.

    Attributes:
        alone: for a publication that comes alone.
        begin: for each time that several publications come, however many.
        each: for each of them.
    """

    alone: float
    begin: float
    each: float

    def of(self, together: float) -> float:
        """Return the cost of one publication if so many come at a time."""
        return self.alone if together <= 1 else min(self.alone, self.begin / together + self.each)

    @classmethod
    def through(cls, alone: float, at_few: float, at_many: float) -> Cost:
        """Return the cost that is ``at_few`` for a publication of :data:`FEW`, and ``at_many`` for one of many."""
        begin = max(0.0, (at_few - at_many) / (1 / FEW - 1 / MANY))
        # What is small beside the noise must not become less than nothing.
        return cls(alone, begin, max(0.0, at_many - begin / MANY))


@dataclass(frozen=True)
class Constants:
    """What was measured.

    Attributes:
        publish: a publication at its publisher.
        forward: a publication at the hub, without its copies.
        copy: a copy of it at the hub, for one worker that wants it.
        receive: a publication at a worker, without the deliveries.
        deliver: a delivery to one subscriber, of as many as :data:`CROWD` at a worker.
        deliver_in_many: the same of as many as :data:`LARGE_CROWD`: the more there are, the fewer of them are still in
            the processor's caches when their turn comes. In between, and above, it grows with the logarithm of their
            number.
        peer_kib: memory of a subscriber at its worker.
        worker_kib: memory of a worker without subscribers.
    """

    publish: Cost
    forward: Cost
    copy: Cost
    receive: Cost
    deliver: Cost
    deliver_in_many: Cost
    peer_kib: float
    worker_kib: float

    def delivery(self, together: float, subscribers: float) -> float:
        """Return the cost of a delivery at a worker with so many subscribers."""
        few, many = self.deliver.of(together), self.deliver_in_many.of(together)
        return few + (many - few) * math.log(max(subscribers, CROWD) / CROWD) / math.log(LARGE_CROWD / CROWD)


@dataclass(frozen=True)
class System:
    """A system that is measured.

    Attributes:
        workers: processes that have subscribers.
        subscribers: of all of them together.
        together: publications that are published at a time.
    """

    workers: int
    subscribers: int
    together: int


@dataclass(frozen=True)
class Spent:
    """What a system takes, measured or predicted.

    Attributes:
        publisher, hub, workers: microseconds of processor time a publication; that of all workers together.
        worker_kib: memory of a worker.
    """

    publisher: float
    hub: float
    workers: float
    worker_kib: float

    @property
    def processor(self) -> float:
        """The microseconds of processor time of all processes."""
        return self.publisher + self.hub + self.workers


def predict(constants: Constants, system: System) -> Spent:
    """Return what a system takes in which all subscribers want everything."""
    together, workers = system.together, system.workers
    return Spent(
        publisher=constants.publish.of(together),
        hub=constants.forward.of(together) + workers * constants.copy.of(together),
        workers=workers * constants.receive.of(together)
        + system.subscribers * constants.delivery(together, system.subscribers / workers),
        worker_kib=constants.worker_kib + system.subscribers / workers * constants.peer_kib,
    )


#: Publications that come at a time.
ALONE, FEW, MANY = 1, 10, 50
#: The systems that the constants come from: one subscriber at one worker, one at each of four, and two crowds at one.
_LONE, _SPREAD = System(1, 1, ALONE), System(4, 4, ALONE)
_CROWD, _LARGE_CROWD = System(1, CROWD, ALONE), System(1, LARGE_CROWD, ALONE)
MEASURED = tuple(
    System(each.workers, each.subscribers, together)
    for each in (_LONE, _SPREAD, _CROWD, _LARGE_CROWD)
    for together in (ALONE, FEW, MANY)
)
#: The systems that the model is checked with.
CHECKED = tuple(
    System(workers, subscribers, together) for workers in (1, 2) for subscribers in (1000, 8000) for together in (1, 20)
)


def constants_of(spent: Sequence[Spent]) -> Constants:
    """Return the constants that follow from what the systems of :data:`MEASURED` took, in their order."""
    lone, spread, crowd, large_crowd = (spent[index : index + 3] for index in range(0, len(MEASURED), 3))

    copies = [(many.hub - one.hub) / (_SPREAD.workers - 1) for one, many in zip(lone, spread, strict=True)]
    delivered = [(many.workers - one.workers) / (CROWD - 1) for one, many in zip(lone, crowd, strict=True)]
    received = [one.workers - delivery for one, delivery in zip(lone, delivered, strict=True)]
    in_many = [(many.workers - own) / LARGE_CROWD for own, many in zip(received, large_crowd, strict=True)]
    peer_kib = (large_crowd[0].worker_kib - lone[0].worker_kib) / (LARGE_CROWD - 1)
    return Constants(
        publish=Cost.through(*[each.publisher for each in lone]),
        forward=Cost.through(*[each.hub - copy for each, copy in zip(lone, copies, strict=True)]),
        copy=Cost.through(*copies),
        receive=Cost.through(*received),
        deliver=Cost.through(*delivered),
        deliver_in_many=Cost.through(*in_many),
        peer_kib=peer_kib,
        worker_kib=lone[0].worker_kib - peer_kib,
    )


# What follows


@dataclass(frozen=True)
class Target:
    """A system that somebody plans to build.

    Attributes:
        subscribers: connections in all.
        publications: a second.
        wanted_by: subscribers that want a publication, on average; they are at any workers.
        together: publications that come at a time to the hub and to a worker. At thousands a second it is more than
            one, as some arrive while others are worked off. To a subscriber they come one by one.
        peers_per_worker: the most connections of a worker.
        busy: how busy a processor core may be on average, from 0 to 1.
        cores, memory_gib: of a host.
    """

    subscribers: int
    publications: float
    wanted_by: float
    together: float = 10
    peers_per_worker: int = LARGE_CROWD
    busy: float = 0.6
    cores: int = 16
    memory_gib: float = 64


@dataclass(frozen=True)
class Estimate:
    """What a target needs. Every number in it is an extrapolation.

    Attributes:
        workers: processes with subscribers.
        wanting: the workers that want a publication, on average.
        worker_load: how busy the core of a worker is.
        hub_load: how busy the core of a hub that serves all workers would be. Above 1 one hub is not enough.
        memory_gib: of all workers.
        hosts: for the workers and the forwarding.
        relayed_load: ``hub_load`` if the hub served one relay on each host, and each relay the workers there.
        relay_load: how busy the core of such a relay would be.
    """

    workers: int
    wanting: float
    worker_load: float
    hub_load: float
    memory_gib: float
    hosts: int
    relayed_load: float
    relay_load: float


def estimate(constants: Constants, target: Target) -> Estimate:
    """Return what a target needs."""
    receive, forward, copy = (
        cost.of(target.together) / 1e6 for cost in (constants.receive, constants.forward, constants.copy)
    )

    def wanting(places: int) -> float:
        # A publication is not wanted at a place if each of those who want it is at another one.
        return places * (1 - (1 - 1 / places) ** target.wanted_by)

    def worker_load(workers: int) -> float:
        delivery = constants.delivery(1, target.subscribers / workers) / 1e6
        return target.publications * (target.wanted_by * delivery + wanting(workers) * receive) / workers

    # With more workers each one has less to deliver, and not more to receive.
    workers = max(1, math.ceil(target.subscribers / target.peers_per_worker))
    while worker_load(workers) > target.busy:
        workers = math.ceil(workers * 1.02)
    hub_load = target.publications * (forward + wanting(workers) * copy)
    memory = (workers * constants.worker_kib + target.subscribers * constants.peer_kib) / (1 << 20)
    # A worker that is not busy leaves its core to others.
    cores = (workers * worker_load(workers) + hub_load) / target.busy
    hosts = max(math.ceil(cores / target.cores), math.ceil(memory / target.memory_gib))
    return Estimate(
        workers=workers,
        wanting=wanting(workers),
        worker_load=worker_load(workers),
        hub_load=hub_load,
        memory_gib=memory,
        hosts=hosts,
        relayed_load=target.publications * (forward + wanting(hosts) * copy),
        relay_load=target.publications * (wanting(hosts) * forward + wanting(workers) * copy) / hosts,
    )


#: One million subscribers and 10,000 publications a second, wanted by few, some, and many.
TARGETS = tuple(Target(1_000_000, 10_000, wanted_by) for wanted_by in (10, 100, 1000))


# Measuring


def measure(system: System, publications: int, plan: Plan) -> Spent:
    """Run a system, and return what it took."""
    subscribers = system.subscribers // system.workers
    with tempfile.TemporaryDirectory(prefix="benchmark") as folder, started(plan) as start:
        url = f"ipc://{folder}/hub"
        hub = start("scale_model:hub", url=url)
        hub.hear()
        workers = [start("scale_model:serve", url=url, subscribers=subscribers) for _ in range(system.workers)]
        publisher = start("scale_model:publish", url=url, together=system.together, takers=system.workers)
        acks = publisher.hear()["acks"]
        taking = []
        for worker in workers:
            taking.append(start("takers:take"))
            taking[-1].tell(
                address=worker.hear()["address"], acks=acks, handshake="gmultisocket", kind=takers.SUB,
                frame_size=_OVERHEAD + len(_TOPIC) + _SIZE, peers=subscribers, patterns=1, burst=system.together,
            )  # fmt: skip
        for worker in workers:
            worker.hear()
        times = max(3, publications // system.together)
        # The first ones warm up, and show that everybody is there.
        _publish(publisher, 2)
        before = [_seconds(peer) for peer in (publisher, hub, *workers)]
        _publish(publisher, times)
        after = [_seconds(peer) for peer in (publisher, hub, *workers)]
        spent = [(end - begin) * 1e6 / (times * system.together) for begin, end in zip(before, after, strict=True)]
        kib = median([_ask(worker)["kib"] for worker in workers])
    return Spent(spent[0], spent[1], sum(spent[2:]), kib)


def _publish(publisher: Peer, times: int) -> None:
    publisher.tell(times=times)
    publisher.hear()


def _ask(peer: Peer) -> dict[str, Any]:
    peer.tell(times=0)
    return peer.hear()


def _seconds(peer: Peer) -> float:
    return float(_ask(peer)["seconds"])


def _answer(**more: Any) -> None:
    say(seconds=time.process_time(), **more)


def hub(url: str) -> None:
    """Run a hub. Answer each line of the parent with the processor time so far (worker)."""
    import gevent

    from gmultisocket.backplane.hubserver import HubServer

    class Hub(HubServer):
        """A hub that says when it listens."""

        def _listening(self, listener: object) -> None:
            say()

    gevent.spawn(Hub().serve, url)
    while True:
        hear(in_loop=True)
        _answer()


def serve(url: str, subscribers: int) -> None:
    """Serve subscribers. Answer each line of the parent with the processor time so far, and the memory (worker)."""
    import gevent

    from gmultisocket.backplane import Backplane

    plane = Backplane(url)
    plane.connect(10)
    pub = plane.pub({"connector.listener.backlog": 1024})
    say(address=pub.listen("tcp://127.0.0.1:0").address)
    pub.wait_subscribers(_TOPIC, subscribers, 60)
    gevent.sleep(SETTLE_TIME)
    say()
    while True:
        hear(in_loop=True)
        _answer(kib=resident_kib())


def publish(url: str, together: int, takers: int) -> None:
    """Publish, and wait until all subscribers have everything (worker)."""
    from gmultisocket.backplane import Backplane

    content = b"x" * _SIZE
    with Backplane(url) as plane, listen_for_acks() as listener:
        plane.connect(10)
        say(acks=listener.getsockname()[1])
        acks = [listener.accept()[0] for _ in range(takers)]
        for each in acks:
            await_ack(each)
        while True:
            for _ in range(hear(in_loop=True)["times"]):
                for _ in range(together):
                    plane.publish(_TOPIC, content)
                for each in acks:
                    await_ack(each)
            _answer()


# The command


def main() -> int:
    """Measure, check and extrapolate. Return 1 if a prediction is off by more than a quarter."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.scale_model", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="do little work: only to show that everything works")
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        metavar="N",
        help="runs of each system; default: 3",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    raise_descriptor_limit()
    plan = Plan(Amount.QUICK if arguments.quick else Amount.FULL, _SECONDS)
    checked = CHECKED[::5] if arguments.quick else CHECKED
    # In turn, so that what else the machine does concerns all.
    runs = [
        [_measure_one(system, plan) for system in (*MEASURED, *checked)]
        for _ in range(1 if arguments.quick else arguments.repeats)
    ]
    spent = [_undisturbed([run[index] for run in runs]) for index in range(len(runs[0]))]
    constants = constants_of(spent[: len(MEASURED)])
    checks = [
        (system, predict(constants, system), measured)
        for system, measured in zip(checked, spent[len(MEASURED) :], strict=True)
    ]
    estimates = [(target, estimate(constants, target)) for target in TARGETS]
    if arguments.json:
        print(json.dumps(_as_dict(constants, checks, estimates), indent=2))
    else:
        print(_as_text(constants, checks, estimates))
    good = all(0.75 <= ratio <= 1.25 for _, predicted, measured in checks for ratio in _ratios(predicted, measured))
    return int(not good and not arguments.quick)


def _measure_one(system: System, plan: Plan) -> Spent:
    if plan.amount is Amount.QUICK:
        return measure(_shrunk(system), 200, plan)
    return measure(system, _amount(system), plan)


def _shrunk(system: System) -> System:
    return System(system.workers, max(system.workers, system.subscribers // 50), system.together)


def _amount(system: System) -> int:
    """Return how many publications take about four seconds."""
    return max(5, 600_000 // (100 + system.subscribers)) * (1 if system.together == 1 else 8)


def _undisturbed(several: Sequence[Spent]) -> Spent:
    """Return the least processor time of each part: other work on the machine can only add to it."""
    return Spent(
        publisher=min(each.publisher for each in several),
        hub=min(each.hub for each in several),
        workers=min(each.workers for each in several),
        worker_kib=median(each.worker_kib for each in several),
    )


def _ratios(predicted: Spent, measured: Spent) -> tuple[float, float]:
    return predicted.processor / measured.processor, predicted.worker_kib / measured.worker_kib


_Checks = Sequence[tuple[System, Spent, Spent]]
_Estimates = Sequence[tuple[Target, Estimate]]


def _as_text(constants: Constants, checks: _Checks, estimates: _Estimates) -> str:
    lines = [machine(), "", "Constants                      alone      begin       each", ""]
    for name in ("publish", "forward", "copy", "receive", "deliver", "deliver_in_many"):
        cost: Cost = getattr(constants, name)
        lines.append(f"  {name.replace('_', ' '):<20} {cost.alone:>9.2f}  {cost.begin:>9.2f}  {cost.each:>9.2f}  µs")
    lines += [f"  {'a subscriber':<20} {constants.peer_kib:>19.1f}  KiB"]
    lines += [f"  {'a worker':<20} {constants.worker_kib / 1024:>19.1f}  MiB", ""]
    lines += [
        "The model checked                processor, µs a publication      memory of a worker, MiB",
        "workers  subscribers  together   predicted   measured  ratio    predicted  measured  ratio",
        "",
    ]
    for system, predicted, measured in checks:
        processor, memory = _ratios(predicted, measured)
        lines.append(
            f"{system.workers:>7}  {system.subscribers:>11,}  {system.together:>8}"
            f"   {predicted.processor:>9,.0f}  {measured.processor:>9,.0f}  {processor:>5.2f}"
            f"    {predicted.worker_kib / 1024:>9.1f} {measured.worker_kib / 1024:>9.1f}  {memory:>5.2f}"
        )
    lines += [
        "",
        "Extrapolated: what 1,000,000 subscribers and 10,000 publications a second need",
        "wanted by  workers  that want one  worker busy  one hub busy  memory, GiB  hosts  hub with relays  a relay",
        "",
    ]
    for target, need in estimates:
        lines.append(
            f"{target.wanted_by:>9,}  {need.workers:>7,}  {need.wanting:>13,.1f}  {need.worker_load:>11.0%}"
            f"  {need.hub_load:>12.0%}  {need.memory_gib:>11.1f}  {need.hosts:>5}"
            f"  {need.relayed_load:>15.0%}  {need.relay_load:>7.0%}"
        )
    return "\n".join(lines)


def _as_dict(constants: Constants, checks: _Checks, estimates: _Estimates) -> dict[str, Any]:
    return {
        "machine": machine(),
        "constants": asdict(constants),
        "checks": [
            {
                "system": asdict(system),
                "predicted": asdict(predicted),
                "measured": asdict(measured),
                "ratios": _ratios(predicted, measured),
            }
            for system, predicted, measured in checks
        ],
        "extrapolated": [{"target": asdict(target), "estimate": asdict(need)} for target, need in estimates],
    }


if __name__ == "__main__":
    sys.exit(main())
