"""A fleet that drafts tokens: what it cannot do is refused by name, and what its ranks tell of drafts is shown."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from r1_cluster.plan import Plan
from r1_serve.protos import fleet_pb2 as pb

DRAFTS = Plan.load("nano-mtp")
ASK: list[Any] = [{"role": "user", "content": "x"}]


def asking(world: Any, **fields: Any) -> Any:
    return world.client.chat.completions.create(model="r1-nano", messages=ASK, max_tokens=50, extra_body=fields)


async def test_min_p_is_refused_where_tokens_are_drafted_and_only_there(world_of: Any) -> None:
    drafting = await world_of((DRAFTS,))
    worker = await drafting.worker(plan=DRAFTS)
    with pytest.raises(openai.BadRequestError) as refused:
        await asking(drafting, min_p=0.1)
    assert (refused.value.code, refused.value.param) == ("invalid_request", "min_p")
    assert "leave min_p out" in refused.value.message
    assert worker.submits.empty()
    plain = await world_of()
    for world, taken_by, min_p in ((drafting, worker, 0), (plain, await plain.worker(), 0.1)):
        task = asyncio.create_task(asking(world, min_p=min_p))
        assert (await taken_by.next_submit()).sampling.min_p == pytest.approx(min_p)
        task.cancel()


async def test_what_ranks_tell_of_drafts_is_shown(world_of: Any) -> None:
    world = await world_of((DRAFTS,))
    worker = await world.worker(plan=DRAFTS)
    await worker.send(load=pb.Load(running=1, draft_tokens_total=10, accepted_draft_tokens_total=9))
    rank = {"model": "r1-nano", "plan": "nano-mtp", "pool": "main", "gang": "0", "rank": "0"}
    await world.until(lambda: world.metric("r1_rank_draft_tokens_total", **rank) == 10)
    assert world.metric("r1_rank_accepted_draft_tokens_total", **rank) == 9


async def test_a_deadline_is_held_against_steps_whose_drafts_are_all_taken(world_of: Any) -> None:
    world = await world_of((DRAFTS,))
    worker = await world.worker(plan=DRAFTS)
    await worker.send(load=pb.Load(running=1, step_time_us=40_000))
    (rank,) = world.router.ranks
    await world.until(lambda: rank.load.step_time_us)
    assert rank.view().step_time_s == pytest.approx(0.02)
