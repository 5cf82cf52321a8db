"""Admission and failover together: what moves reserves nothing twice; the resolved budget is the one enforced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
from r1_serve.protos import fleet_pb2 as pb

ASK: list[Any] = [{"role": "user", "content": "x"}]
CAPPED = """
anonymous: guests
tenants:
  - name: guests
    quota: {max_running: 1}
    budget: {default: 3, floor: 1, ceiling: 4}
"""


async def test_a_call_that_moves_keeps_its_place_its_quota_and_its_tenants_budget(
    world_of: Any, ids: Callable[[str], list[int]], tmp_path: Path
) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text(CAPPED)
    world = await world_of(tenants=path, resume_wait_s=60)

    def asking(**fields: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(
            world.client.chat.completions.create(
                model="r1-nano", messages=ASK, extra_body=fields, extra_headers={"Authorization": openai.Omit()}
            )
        )

    first = await world.worker()
    request = asking(thinking_token_budget=100)
    submit = await first.next_submit()
    behind = asking()
    await world.until(lambda: world.router.service.desk.queued("r1-nano") == 1)
    await first.send(pb.Delta(request_id=submit.request_id, token_ids=ids("1 +")))
    await first.die()
    second = await world.worker()
    again = await second.next_submit()
    assert list(again.prompt_token_ids) == [*submit.prompt_token_ids, *ids("1 +")]
    assert again.cache_salt == "guests"
    assert second.submits.empty(), "the quota of one is still held, once"
    await second.send(pb.Delta(request_id=again.request_id, token_ids=ids(" 2 + 3 + 4")))
    closed = await second.next_submit()
    await second.send(pb.Delta(request_id=closed.request_id, token_ids=ids("3"), finish=pb.FINISH_STOP))
    done = await request
    assert done.usage.thinking_budget == {"asked": 100, "applied": 4, "used": 4}
    assert done.choices[0].thinking_finish_reason == "budget"
    other = await second.next_submit()  # the place is free again
    await second.send(pb.Delta(request_id=other.request_id, token_ids=ids("a</think>b"), finish=pb.FINISH_STOP))
    assert (await behind).usage.thinking_budget["asked"] is None
