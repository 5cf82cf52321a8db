"""The ranks as columns: always what a snapshot of them would be, whatever changed and in which order."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
from r1_cluster.routing import SHIPPED, Demand, RankView
from r1_cluster.routing.fleet import KV_OF_OTHERS, LAST_PICK, LOAD
from r1_cluster.routing.kv import KvForecast, Shape, Standing
from r1_cluster.routing.ledger import KvLedger
from r1_cluster.routing.lengths import LengthForecast, LengthKey
from r1_cluster.routing.table import RankTable

ALIVE = np.linspace(1.0, 0.0, 12)
SHAPE = Shape(LengthKey("acme", "r1"), prompt_tokens=500, max_tokens=8000, budget=7000)


def rank(number: int, **changes: object) -> RankView:
    base = RankView(f"r{number}", 8, 2, kv_tokens=20_000, gang_id=f"g{number // 4}")
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


@pytest.fixture
def ledger() -> KvLedger:
    return KvLedger(LengthForecast(), refresh_s=1e9)


@pytest.fixture
def table(ledger: KvLedger) -> RankTable:
    return RankTable(ledger)


@pytest.mark.parametrize("name", SHIPPED)
def test_after_any_changes_a_pick_is_that_from_a_snapshot(name: str, ledger: KvLedger, table: RankTable) -> None:
    rng = random.Random(name)
    views: dict[str, RankView] = {}
    placed: list[tuple[int, str]] = []
    chooser = SHIPPED[name].build()
    for step in range(600):
        number = rng.randrange(12)
        view = rank(
            number,
            running=rng.randrange(6),
            others=rng.randrange(2),
            kv_usage=rng.random(),
            draining=rng.random() < 0.1,
            last_pick=step,
        )
        what = rng.random()
        if what < 0.4:
            views[view.worker_id] = view
            table.put(view)
        elif what < 0.5:
            views.pop(view.worker_id, None)
            table.remove(view.worker_id)
        elif what < 0.8:
            placed.append((ledger.place(view.worker_id, SHAPE, Standing(), 0.0), view.worker_id))
            table.changed(ledger.row(view.worker_id))
        elif placed:
            row = ledger.remove(placed.pop(rng.randrange(len(placed)))[0])
            assert row is not None
            table.changed(row)
        demand = Demand(1000, 4000, {"r3": 512}, KvForecast((900.0,) * 12, (100.0,) * 12), 700.0, ALIVE)
        rows = table.every()
        snapshot = [
            dataclasses.replace(
                views[worker_id],
                in_flight=max(views[worker_id].load, ledger.count(worker_id)),
                kv_ahead=ledger.ahead(worker_id, 0.0),
            )
            for worker_id in table.ids(rows)
        ]
        by_table, by_views = chooser.pick(table.fleet(rows, demand)), chooser.choose(demand, snapshot)
        assert by_table.explain() == by_views.explain()
        assert set(views) == set(table.ids(rows))


def test_pressure_is_each_ranks_worst_moment_and_what_others_hold(ledger: KvLedger, table: RankTable) -> None:
    table.put(rank(0, kv_usage=0.5))
    table.put(rank(1))
    assert table.pressure == pytest.approx(0.25)
    ledger.place("r1", SHAPE, Standing(), 0.0)
    table.changed(ledger.row("r1"))
    assert table.pressure == pytest.approx((10_000 + ledger.ahead("r1", 0.0).peak()) / 40_000)
    table.remove("r0")
    table.remove("r0")
    table.remove("r1")
    assert (table.pressure, table.largest, len(table)) == (0.0, 0, 0)


def test_of_many_the_emptiest_that_do_not_drain_are_looked_at_and_those_named(table: RankTable) -> None:
    for number in range(20):
        table.put(rank(number, running=number % 7, draining=number == 0))
    rows = table.shortlist(4, also=["r6", "gone"])
    assert sorted(table.ids(rows)) == ["r1", "r14", "r6", "r7", "r8"]


def test_a_report_and_a_pick_change_one_rank_without_a_snapshot(table: RankTable) -> None:
    first, second = table.put(rank(0)), table.put(rank(1))
    table.report(first, load=3, kv_usage=0.4, step_time_s=0.05)
    table.picked(second, 7)
    fleet = table.fleet(table.every(), Demand(1, 1))
    assert fleet.numbers[LOAD].tolist() == [3, 0]
    assert fleet.numbers[KV_OF_OTHERS].tolist() == [8000, 0]
    assert fleet.numbers[LAST_PICK].tolist() == [0, 7]


def test_a_snapshot_replaces_what_was_there(table: RankTable) -> None:
    table.sync([rank(0), rank(1)])
    table.sync([rank(1, running=2), rank(2)])
    fleet = table.fleet(table.every(), Demand(1, 1))
    assert {view.worker_id: load for view, load in zip(fleet.ranks, fleet.numbers[LOAD].tolist(), strict=True)} == {
        "r1": 2,
        "r2": 0,
    }
    assert np.isfinite(fleet.ahead).all()
