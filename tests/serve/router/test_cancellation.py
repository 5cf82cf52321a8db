"""A client that leaves, or whose time is up, stops the engine's work at once."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import httpx
import openai
import pytest
from r1_serve.protos import fleet_pb2 as fleet
from r1_serve.protos import reasoning_pb2 as pb
from r1_serve.protos import reasoning_pb2_grpc as rpc

ASK: list[Any] = [{"role": "user", "content": "x"}]
WITHIN_S = 0.1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tokens_first", [False, True])
async def test_a_client_that_hangs_up_aborts_all_its_choices_within_100_ms(
    world: Any, ids: Any, stream: bool, tokens_first: bool
) -> None:
    worker = await world.worker()
    async with httpx.AsyncClient(base_url=world.http) as http:
        body = {"messages": ASK, "stream": stream, "n": 2}
        asking = asyncio.create_task(http.post("/v1/chat/completions", json=body))
        submits = [await worker.next_submit() for _ in range(2)]
        if tokens_first:
            await worker.send(*(fleet.Delta(request_id=s.request_id, token_ids=ids("a")) for s in submits))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        left = time.monotonic()
        aborted = {await worker.next_abort() for _ in submits}
    assert time.monotonic() - left < WITHIN_S
    assert aborted == {submit.request_id for submit in submits}
    assert world.metric("r1_requests_total", model="r1-nano", outcome="cancelled") == 1


async def test_a_cancelled_grpc_call_aborts_within_100_ms(world: Any) -> None:
    worker = await world.worker()
    async with grpc.aio.insecure_channel(world.grpc) as channel:
        call = rpc.ReasoningStub(channel).Chat(pb.ChatRequest(messages=[pb.Message(role="user", content="x")]))
        submit = await worker.next_submit()
        call.cancel()
        left = time.monotonic()
        assert await worker.next_abort() == submit.request_id
    assert time.monotonic() - left < WITHIN_S
    assert world.metric("r1_requests_total", model="r1-nano", outcome="cancelled") == 1


async def test_what_a_worker_still_sends_after_the_abort_is_passed_over(world: Any, ids: Any, says: Any) -> None:
    worker = await world.worker()
    async with grpc.aio.insecure_channel(world.grpc) as channel:
        call = rpc.ReasoningStub(channel).Chat(pb.ChatRequest(messages=[pb.Message(role="user", content="x")]))
        submit = await worker.next_submit()
        call.cancel()
        await worker.next_abort()
    asking = asyncio.create_task(world.client.chat.completions.create(model="r1-nano", messages=ASK))
    following = await worker.next_submit()
    assert following.request_id != submit.request_id
    await worker.send(
        fleet.Delta(request_id=submit.request_id, token_ids=ids("stale")),
        fleet.Delta(request_id=following.request_id, token_ids=ids("</think>fresh"), finish=fleet.FINISH_STOP),
    )
    assert (await asking).choices[0].message.content == "fresh"
    assert world.metric("r1_stray_deltas_total") == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_from_the_header_aborts_and_says_so(world: Any, stream: bool) -> None:
    worker = await world.worker()
    with pytest.raises(openai.APIStatusError) as fault:
        await world.client.chat.completions.create(
            model="r1-nano", messages=ASK, stream=stream, extra_headers={"X-Request-Timeout": "0.05"}
        )
    assert fault.value.status_code == 504
    assert fault.value.code == "deadline_exceeded"
    assert await worker.next_abort() == (await worker.next_submit()).request_id
    assert world.metric("r1_requests_total", model="r1-nano", outcome="deadline_exceeded") == 1


async def test_a_request_cannot_ask_for_more_time_than_the_router_gives(world_of: Any) -> None:
    world = await world_of(request_timeout_s=0.05)
    await world.worker()
    with pytest.raises(openai.APIStatusError, match=r"within 0\.05 s"):
        await world.client.chat.completions.create(
            model="r1-nano", messages=ASK, extra_headers={"X-Request-Timeout": "1000"}
        )


async def test_a_grpc_deadline_aborts(world: Any) -> None:
    worker = await world.worker()
    async with grpc.aio.insecure_channel(world.grpc) as channel:
        request = pb.ChatRequest(messages=[pb.Message(role="user", content="x")])
        call = rpc.ReasoningStub(channel).Chat(request, timeout=0.3)
        submit = await worker.next_submit()
        with pytest.raises(grpc.aio.AioRpcError) as fault:
            async for _ in call:
                pass
        assert fault.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await worker.next_abort() == submit.request_id
    assert world.metric("r1_requests_total", model="r1-nano", outcome="deadline_exceeded") == 1


async def test_a_finished_call_sends_no_abort(world: Any, says: Any) -> None:
    worker = await world.worker(says("a</think>b"))
    await world.client.chat.completions.create(model="r1-nano", messages=ASK)
    await worker.next_submit()
    await world.client.chat.completions.create(model="r1-nano", messages=ASK)
    assert worker.aborts.empty()


async def test_however_calls_end_nothing_of_them_is_left(world: Any, ids: Any) -> None:
    """Forty calls, some streamed, some with several choices, left by the client after no, one or all frames."""
    worker = await world.worker()
    rank = world.router.ranks.of("r1-nano")[0]
    for number in range(40):
        fields = {"stream": bool(number % 2), "n": 1 + number % 3, "stop": ["9"] if number % 5 == 0 else None}
        asking = asyncio.create_task(world.client.chat.completions.create(model="r1-nano", messages=ASK, **fields))
        submits = [await worker.next_submit() for _ in range(1 + number % 3)]
        for text, finish in (("1", fleet.FINISH_NONE), ("</think>89", fleet.FINISH_LENGTH))[: number % 4]:
            deltas = [fleet.Delta(request_id=s.request_id, token_ids=ids(text), finish=finish) for s in submits]
            await worker.send(*deltas)
        if number % 4 < 2:
            asking.cancel()
        for outcome in await asyncio.gather(asking, return_exceptions=True):
            if isinstance(outcome, openai.AsyncStream):
                if number % 4 >= 2:
                    [_ async for _ in outcome]  # told everything: left sooner, it would count as cancelled
                await outcome.close()
    await world.until(lambda: not world.router.service.calls)
    assert rank.in_flight == 0
    outcomes = {o: world.metric("r1_requests_total", model="r1-nano", outcome=o) or 0 for o in ("ok", "cancelled")}
    assert outcomes == {"ok": 20, "cancelled": 20}
