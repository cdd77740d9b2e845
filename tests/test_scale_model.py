"""The model of how a system grows: its arithmetic, and that it measures. No test checks how fast anything is."""

from __future__ import annotations

import json
from dataclasses import astuple, replace

import pytest

from benchmarks import scale_model
from benchmarks.harness import Amount, Plan
from benchmarks.scale_model import (
    CHECKED,
    CROWD,
    FEW,
    LARGE_CROWD,
    MANY,
    MEASURED,
    Constants,
    Cost,
    Spent,
    System,
    Target,
    constants_of,
    estimate,
    measure,
    predict,
)

CONSTANTS = Constants(
    publish=Cost(22.0, 20.0, 2.0),
    forward=Cost(31.0, 30.0, 1.0),
    copy=Cost(10.5, 10.0, 0.5),
    receive=Cost(43.0, 50.0, 3.0),
    deliver=Cost(6.25, 10.0, 0.25),
    deliver_in_many=Cost(7.5, 12.0, 0.5),
    peer_kib=10.0,
    worker_kib=30_720.0,
)


def test_what_comes_together_shares_what_it_costs_to_begin() -> None:
    assert Cost(15.0, 20.0, 2.0).of(1) == 15.0
    assert Cost(15.0, 20.0, 2.0).of(10) == 4.0
    # Two that come together cost no more than two that come alone.
    assert Cost(10.0, 20.0, 2.0).of(2) == 10.0
    assert (FEW, MANY) == (10, 50)
    assert Cost.through(15.0, 4.0, 2.4) == pytest.approx((15.0, 20.0, 2.0))
    # Noise makes no negative price.
    assert Cost.through(8.0, 5.0, 6.0) == (8.0, 0.0, 6.0)
    assert Cost.through(60.0, 50.0, 0.5) == pytest.approx((60.0, 618.75, 0.0), rel=1e-4)


def test_a_system_costs_the_sum_of_its_parts() -> None:
    spent = predict(CONSTANTS, System(workers=2, subscribers=1000, together=10))
    assert CROWD == 500
    # 20/10+2; (30/10+1) + 2 copies of 10/10+0.5; 2 workers of 50/10+3 and 1,000 deliveries of 10/10+0.25.
    assert spent == pytest.approx(Spent(4.0, 7.0, 16.0 + 1250.0, 30_720.0 + 5000.0))
    assert spent.processor == pytest.approx(1277.0)


def test_a_delivery_costs_more_in_a_larger_crowd() -> None:
    def cost(subscribers: float) -> float:
        return CONSTANTS.delivery(1, subscribers)

    assert [cost(size) for size in (1, CROWD, LARGE_CROWD)] == pytest.approx([6.25, 6.25, 7.5])
    assert cost((CROWD * LARGE_CROWD) ** 0.5) == pytest.approx(6.875)
    assert cost(LARGE_CROWD**2 / CROWD) == pytest.approx(8.75)


def test_the_constants_are_those_that_explain_the_measured_systems() -> None:
    found = constants_of([predict(CONSTANTS, system) for system in MEASURED])
    for name in ("publish", "forward", "copy", "receive", "deliver", "deliver_in_many"):
        assert getattr(found, name) == pytest.approx(getattr(CONSTANTS, name)), name
    assert astuple(found)[6:] == pytest.approx(astuple(CONSTANTS)[6:])


def test_it_is_checked_with_one_and_two_processes_and_others_than_those_that_it_comes_from() -> None:
    assert {(each.workers, each.subscribers) for each in CHECKED} == {(1, 1000), (1, 8000), (2, 1000), (2, 8000)}
    assert not set(CHECKED) & set(MEASURED)


def test_a_target_that_waits_for_memory() -> None:
    need = estimate(CONSTANTS, Target(1_000_000, publications=1, wanted_by=1, memory_gib=4))
    assert need.workers == 100
    assert need.wanting == pytest.approx(1.0)
    assert need.memory_gib == pytest.approx((100 * 30_720 + 1_000_000 * 10) / 1024**2)
    assert need.hosts == 4


def test_a_target_that_waits_for_processors() -> None:
    target = Target(10_000, publications=10_000, wanted_by=1000, together=1, cores=8)
    need = estimate(CONSTANTS, target)
    # 10,000 a second to 1,000 each. A worker has fewer subscribers than the small crowd: 6.25 us a delivery.
    assert 10_000 / need.workers < CROWD
    deliveries = 62.5
    received = 10_000 * need.wanting * 43e-6
    assert need.worker_load == pytest.approx((deliveries + received) / need.workers)
    assert 0.57 < need.worker_load <= 0.6
    assert need.hub_load == pytest.approx(10_000 * (31 + need.wanting * 10.5) / 1e6)
    assert need.hosts == -(-(deliveries + received + need.hub_load) // (0.6 * 8))
    # With relays the hub makes a copy for each host, and a relay one for each worker there that wants it.
    hosts = need.hosts * (1 - (1 - 1 / need.hosts) ** 1000)
    assert need.relayed_load == pytest.approx(10_000 * (31 + hosts * 10.5) / 1e6)
    assert need.relay_load == pytest.approx(10_000 * (hosts * 31 + need.wanting * 10.5) / 1e6 / need.hosts)


def test_a_publication_is_wanted_by_no_more_workers_than_there_are_and_than_want_it() -> None:
    few, many = (estimate(CONSTANTS, Target(1_000_000, 10, wanted_by)) for wanted_by in (2, 100_000))
    assert 1.9 < few.wanting < 2
    assert many.wanting == pytest.approx(many.workers)
    alone = estimate(CONSTANTS, Target(100, 10, 50))
    assert (alone.workers, alone.wanting) == (1, 1.0)


def test_a_real_system_is_measured_and_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    system = System(workers=2, subscribers=6, together=3)
    spent = measure(system, 12, Plan(Amount.QUICK, 40.0))
    assert min(astuple(spent)) > 0
    # The rest of the command, without the time that it takes to measure.
    monkeypatch.setattr(scale_model, "measure", lambda system, publications, plan: predict(CONSTANTS, system))
    monkeypatch.setattr("sys.argv", ["scale_model"])
    assert scale_model.main() == 0
    printed = capsys.readouterr().out
    assert sum(line.endswith("  1.00") for line in printed.splitlines()) == len(CHECKED)
    assert "Extrapolated: what 1,000,000 subscribers" in printed
    monkeypatch.setattr("sys.argv", ["scale_model", "--json"])
    assert scale_model.main() == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["ratios"] for each in found["checks"]] == [pytest.approx([1.0, 1.0])] * len(CHECKED)
    assert len(found["extrapolated"]) == 3


def test_a_prediction_that_is_off_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(system: System, publications: int, plan: Plan) -> Spent:
        spent = predict(CONSTANTS, system)
        return replace(spent, workers=spent.workers * 1.4) if system.subscribers == 8000 else spent

    monkeypatch.setattr(scale_model, "measure", measured)
    monkeypatch.setattr("sys.argv", ["scale_model"])
    assert scale_model.main() == 1
