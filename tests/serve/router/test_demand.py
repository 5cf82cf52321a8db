from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.router.demand import demand, tell_demand

ASK: list[Any] = [{"role": "user", "content": "x"}]


@pytest.fixture
async def telling(world: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(tell_demand(world.router.service, interval_s=0.01))
    yield
    task.cancel()


async def test_only_ranks_that_want_to_know_are_told_what_is_asked(world: Any, telling: None) -> None:
    curious = await world.worker(wants_demand=True)
    other = await world.worker()
    told = await asyncio.wait_for(curious.demands.get(), 10)
    assert (told.queued, told.pressure, told.slo_burn) == (0, 0, 0)
    assert other.demands.empty()


async def test_demand_counts_what_this_router_has_placed_and_not_what_others_have(world: Any) -> None:
    worker = await world.worker()
    await worker.send(load=pb.Load(kv_usage=0.5))
    asking = asyncio.create_task(world.client.chat.completions.create(model="r1-nano", messages=ASK))
    await worker.next_submit()
    load = world.router.service.desk.load("r1-nano")
    await world.until(lambda: world.router.service.desk.load("r1-nano").pressure > 0.5)
    told = demand(world.router.service, "r1-nano")
    assert 0 < told.pressure == pytest.approx(load.placed_pressure)
    assert told.pressure < 0.5
    asking.cancel()
    await worker.next_abort()
