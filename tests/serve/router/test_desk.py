"""Admission in the live router: calls that wait, start in turn, give up, are refused, and tenants' shares of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest
from google.rpc import error_details_pb2, status_pb2
from r1_cluster.plan import Plan
from r1_cluster.routing.tenants import hash_key
from r1_serve.errors import NoWorkers
from r1_serve.protos import fleet_pb2 as fleet
from r1_serve.protos import reasoning_pb2 as pb
from r1_serve.protos import reasoning_pb2_grpc as rpc
from r1_serve.router import desk as desk_module

ASK: list[Any] = [{"role": "user", "content": "x"}]
TENANTS = f"""
tenants:
  - name: acme
    keys: [{hash_key("acme-key")}]
    quota: {{max_running: 1}}
  - name: small
    keys: [{hash_key("small-key")}]
    quota: {{tokens_per_minute: 10}}
"""


def one_seat(**limits: int) -> Plan:
    value = Plan.load("nano-tp1").model_dump()
    value["engine"] |= {"max_num_seqs": 1}
    value["limits"] |= limits
    return Plan.model_validate(value)


def asking(world: Any, **fields: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(world.client.chat.completions.create(model="r1-nano", messages=ASK, **fields))


@pytest.fixture
def finish(ids: Callable[[str], list[int]]) -> Callable[[fleet.Submit], fleet.Delta]:
    return lambda submit: fleet.Delta(
        request_id=submit.request_id, token_ids=ids("a</think>b"), finish=fleet.FINISH_STOP
    )


@pytest.fixture
async def full(world_of: Any) -> Any:
    """A world with one seat, and the worker and the request that has it."""
    plan = one_seat()
    world = await world_of([plan])
    worker = await world.worker(plan=plan)
    running = asking(world)
    submit = await worker.next_submit()
    yield world, worker, submit
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def queued(world: Any) -> int:
    return int(world.router.service.desk.queued("r1-nano"))


async def test_a_call_without_a_seat_waits_in_the_router_and_starts_when_one_is_free(full: Any, finish: Any) -> None:
    world, worker, first = full
    second = asking(world)
    await world.until(lambda: queued(world) == 1)
    assert worker.submits.empty()
    await worker.send(finish(first))
    await worker.send(finish(await worker.next_submit()))
    assert (await second).choices[0].message.content == "b"
    assert queued(world) == 0


async def test_a_seat_is_taken_as_soon_as_the_frame_that_frees_it_is_read(
    full: Any, finish: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when somebody next looks: the timer is out of reach here."""
    monkeypatch.setattr(desk_module, "LOOK_S", 3600.0)
    world, worker, first = full
    second = asking(world)
    await world.until(lambda: queued(world) == 1)
    await worker.send(finish(first), load=fleet.Load(running=0))
    await worker.send(finish(await worker.next_submit()))
    await second


async def test_a_waiting_client_that_hangs_up_is_never_submitted(full: Any, finish: Any) -> None:
    world, worker, first = full
    gone = asking(world)
    await world.until(lambda: queued(world) == 1)
    gone.cancel()
    await world.until(lambda: queued(world) == 0)
    stays = asking(world, max_tokens=7)
    await world.until(lambda: queued(world) == 1)
    await worker.send(finish(first))
    submit = await worker.next_submit()
    assert submit.sampling.max_tokens == 7
    await worker.send(finish(submit))
    await stays


async def test_a_waiting_calls_deadline_ends_it(full: Any) -> None:
    world, worker, _ = full
    with pytest.raises(openai.APIStatusError) as fault:
        await asking(world, extra_headers={"x-request-timeout": "0.05"})
    assert fault.value.code == "deadline_exceeded"
    assert queued(world) == 0
    assert worker.submits.empty()


async def test_a_new_worker_takes_who_waits(full: Any, says: Any) -> None:
    world, _, _ = full
    second = asking(world)
    await world.until(lambda: queued(world) == 1)
    await world.worker(says("a</think>new"), plan=one_seat())
    assert (await second).choices[0].message.content == "new"


async def test_a_call_that_has_begun_moves_before_those_that_wait(full: Any, says: Any) -> None:
    world, _, _ = full
    waiting = asking(world)
    await world.until(lambda: queued(world) == 1)
    desk, ranks = world.router.service.desk, world.router.ranks
    first = next(iter(ranks))
    (call,) = (call for call in world.router.service.calls if call.generations)
    with pytest.raises(NoWorkers):
        desk.move(call, 0, avoid=first)
    assert desk.move(call, 0) is first, "its seat is its own"
    await world.worker(says("a</think>b"), plan=one_seat())
    await waiting


async def test_however_many_calls_run_out_of_time_together_all_are_told(full: Any) -> None:
    world, worker, first = full
    many = [asking(world, extra_headers={"x-request-timeout": "300"}) for _ in range(150)]
    await world.until(lambda: queued(world) == len(many))
    # The rank turns out slow: now none of them can be done in time, and a seat becomes free.
    done = fleet.Delta(request_id=first.request_id, finish=fleet.FINISH_STOP)
    await worker.send(done, load=fleet.Load(step_time_us=60_000_000))
    outcomes = await asyncio.gather(*many, return_exceptions=True)
    assert {getattr(outcome, "code", None) for outcome in outcomes} == {"deadline_unreachable"}
    assert queued(world) == 0


async def test_a_deadline_no_rank_can_meet_is_refused_before_any_work(world: Any) -> None:
    worker = await world.worker()
    await worker.send(load=fleet.Load(step_time_us=500_000))
    await world.until(lambda: next(iter(world.router.ranks)).load.step_time_us)
    with pytest.raises(openai.APIStatusError) as fault:
        await asking(world, extra_headers={"x-request-timeout": "2"})
    assert (fault.value.status_code, fault.value.code) == (503, "deadline_unreachable")
    assert worker.submits.empty()


async def test_what_no_ranks_cache_holds_is_refused_by_name(world: Any) -> None:
    worker = await world.worker()
    next(iter(world.router.ranks)).hello.capacity.kv_tokens = 500
    with pytest.raises(openai.BadRequestError) as fault:
        await asking(world, max_tokens=1000)
    assert fault.value.code == "too_long_for_plan"
    assert worker.submits.empty()


@pytest.fixture
async def shared(world_of: Any, tmp_path: Path) -> Any:
    path = tmp_path / "tenants.yaml"
    path.write_text(TENANTS)
    return await world_of(tenants=path)


def client(world: Any, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{world.http}/v1", api_key=key, max_retries=0)


async def test_a_key_of_no_tenant_is_refused_over_http_and_grpc(shared: Any) -> None:
    await shared.worker()
    with pytest.raises(openai.AuthenticationError) as fault:
        await asking(shared)
    assert fault.value.code == "unknown_key"
    async with grpc.aio.insecure_channel(shared.grpc) as channel:
        call = rpc.ReasoningStub(channel).Chat(pb.ChatRequest(messages=[pb.Message(role="user", content="x")]))
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "Authorization: Bearer" in await call.details()


async def test_tenants_prompts_lie_apart_in_prefix_caches(shared: Any, says: Any) -> None:
    worker = await shared.worker(says("a</think>b"))
    async with client(shared, "acme-key") as acme:
        await acme.chat.completions.create(model="r1-nano", messages=ASK)
    assert (await worker.next_submit()).cache_salt == "acme"


async def test_a_tenant_without_tokens_left_is_told_when_to_come_back(shared: Any, finish: Any) -> None:
    worker = await shared.worker()
    async with client(shared, "small-key") as small:
        running = asyncio.create_task(small.chat.completions.create(model="r1-nano", messages=ASK, max_tokens=20))
        submit = await worker.next_submit()
        with pytest.raises(openai.RateLimitError) as fault:
            await small.chat.completions.create(model="r1-nano", messages=ASK, max_tokens=20)
        assert fault.value.code == "tenant_quota"
        assert int(fault.value.response.headers["retry-after"]) > 1
        await worker.send(finish(submit))
        await running


async def test_a_tenant_at_its_limit_waits_while_others_pass(shared: Any, finish: Any) -> None:
    worker = await shared.worker()
    async with client(shared, "acme-key") as acme, client(shared, "small-key") as small:
        first, second = (
            asyncio.create_task(acme.chat.completions.create(model="r1-nano", messages=ASK)) for _ in range(2)
        )
        submit = await worker.next_submit()
        await shared.until(lambda: queued(shared) == 1)
        other = asyncio.create_task(small.chat.completions.create(model="r1-nano", messages=ASK))
        passing = await worker.next_submit()
        assert passing.cache_salt == "small"
        await worker.send(finish(submit), finish(passing))
        await worker.send(finish(await worker.next_submit()))
        await asyncio.gather(first, second, other)


async def test_the_debug_page_says_which_scores_decided_where_it_is_switched_on(world_of: Any, says: Any) -> None:
    world = await world_of(debug_routing=True)
    await world.worker(says("a</think>b"), worker_id="w0")
    await asking(world)
    async with httpx.AsyncClient(base_url=world.http) as http:
        page = (await http.get("/debug/routing")).json()
    last = page["r1-nano"]["recent"][0]
    assert page["r1-nano"]["queued"] == 0
    assert (last["tenant"], last["outcome"]) == ("default", "started")
    assert last["explanation"].startswith("picked w0; w0=")
    assert "kv ahead" in last["explanation"]


async def test_the_debug_page_is_off_by_default(world: Any) -> None:
    async with httpx.AsyncClient(base_url=world.http) as http:
        assert (await http.get("/debug/routing")).status_code == 404


async def test_a_grpc_call_ends_with_the_scores_that_decided(world: Any, says: Any) -> None:
    await world.worker(says("a</think>b"), worker_id="w0")
    async with grpc.aio.insecure_channel(world.grpc) as channel:
        call = rpc.ReasoningStub(channel).Chat(pb.ChatRequest(messages=[pb.Message(role="user", content="x")]))
        assert [event async for event in call]
        assert dict(await call.trailing_metadata())["r1-route"].startswith("picked w0; w0=")


async def test_a_refused_grpc_call_carries_retry_info(shared: Any, finish: Any) -> None:
    worker = await shared.worker()
    request = pb.ChatRequest(messages=[pb.Message(role="user", content="x")], max_tokens=20)
    key = (("authorization", "Bearer small-key"),)
    async with grpc.aio.insecure_channel(shared.grpc) as channel:
        running = rpc.ReasoningStub(channel).Chat(request, metadata=key)
        submit = await worker.next_submit()
        refused = rpc.ReasoningStub(channel).Chat(request, metadata=key)
        assert await refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        details = status_pb2.Status.FromString(dict(await refused.trailing_metadata())["grpc-status-details-bin"])
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        assert details.details[0].Unpack(info)
        assert details.details[1].Unpack(retry)
        assert (info.reason, details.code) == ("tenant_quota", grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
        assert retry.retry_delay.ToTimedelta().total_seconds() > 1
        await worker.send(finish(submit))
        assert [event async for event in running]
