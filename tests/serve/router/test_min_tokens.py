"""A request may ask for at least so many tokens: outputs of a known length, for benchmarks and calibration."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import openai
import pytest
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.protos import reasoning_pb2 as north
from r1_serve.protos import reasoning_pb2_grpc as rpc

ASK: list[Any] = [{"role": "user", "content": "x"}]


def asking(world: Any, **fields: Any) -> asyncio.Task[Any]:
    known = {name: fields.pop(name) for name in ("max_tokens",) if name in fields}
    return asyncio.create_task(
        world.client.chat.completions.create(model="r1-nano", messages=ASK, extra_body=fields, **known)
    )


async def refused(world: Any, **fields: Any) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as fault:
        await asking(world, **fields)
    return fault.value


@pytest.mark.parametrize(("given", "reaches"), [({}, 0), ({"min_tokens": 0}, 0), ({"min_tokens": 50}, 50)])
async def test_it_reaches_the_engine(world: Any, given: dict[str, int], reaches: int) -> None:
    worker = await world.worker()
    task = asking(world, max_tokens=50, **given)
    submit = await worker.next_submit()
    assert (submit.sampling.max_tokens, submit.sampling.min_tokens) == (50, reaches)
    task.cancel()


async def test_over_grpc_too(world: Any) -> None:
    worker = await world.worker()
    async with grpc.aio.insecure_channel(world.grpc) as channel:
        asked = north.ChatRequest(messages=[north.Message(role="user", content="x")], max_tokens=9, min_tokens=7)
        call = rpc.ReasoningStub(channel).Chat(asked)
        assert (await worker.next_submit()).sampling.min_tokens == 7
        call.cancel()


async def test_a_thought_closed_by_the_router_counts_against_it(world: Any, ids: Any) -> None:
    worker = await world.worker()
    task = asking(world, max_tokens=60, min_tokens=60, thinking_token_budget=2)
    first = await worker.next_submit()
    await worker.send(pb.Delta(request_id=first.request_id, token_ids=ids("1+2")))
    second = await worker.next_submit()
    left = 60 - 2 - len(ids("</think>\n\n"))
    assert (second.sampling.max_tokens, second.sampling.min_tokens) == (left, left)
    task.cancel()


async def test_a_stop_string_ends_it_all_the_same(world: Any, ids: Any) -> None:
    worker = await world.worker()
    task = asking(world, max_tokens=60, min_tokens=60, stop=["5"])
    submit = await worker.next_submit()
    await worker.send(pb.Delta(request_id=submit.request_id, token_ids=ids("1</think>\n\n45")))
    done = await task
    assert (done.choices[0].message.content, done.choices[0].finish_reason) == ("4", "stop")
    assert await worker.next_abort() == submit.request_id


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": "9"}, "min_tokens"),
        ({"min_tokens": 51, "max_tokens": 50}, "more than max_tokens 50:"),
        ({"min_tokens": 1537}, "more than max_tokens 1536:"),
        ({"min_tokens": 1 << 40, "max_tokens": 50}, "min_tokens"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(world: Any, fields: dict[str, Any], told: str) -> None:
    worker = await world.worker()
    fault = await refused(world, **fields)
    assert (fault.code, fault.param) == ("invalid_request", "min_tokens")
    assert told in fault.message
    assert worker.submits.empty()
