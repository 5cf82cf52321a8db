"""Workers at the south door: who may attach, how work is spread, and what happens when one dies."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import httpx
import openai
import pytest
from r1_cluster.plan import Plan
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.router.choice import Choice

ASK: list[Any] = [{"role": "user", "content": "x"}]


def renamed(plan: Plan, name: str, **limits: int) -> Plan:
    """The same deployment serving another name."""
    value = plan.model_dump()
    value["model"] |= {"name": name, "aliases": ()}
    value["limits"] |= limits
    return Plan.model_validate(value)


def asking(world: Any, model: str = "r1-nano", **fields: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(world.client.chat.completions.create(model=model, messages=ASK, **fields))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol_version": 1}, "fleet protocol 1, this router 2"),
        ({"plan_hash": "abc"}, r"runs plan nano-tp1 \(abc\), this router knows nano-tp1"),
        ({"model": "other"}, "has no model 'other'"),
        ({"pool": "other"}, "pool 'other'"),
        ({"rank": 1}, "rank 1 of 1 does not fit"),
        ({"gang_size": 2}, "rank 0 of 2 does not fit"),
        ({"worker_id": ""}, "worker_id must be given"),
        ({"worker_id": "x" * 201}, "at most 200"),
    ],
)
async def test_a_worker_that_does_not_fit_is_told_why(world: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=message) as fault:
        await world.worker(**changes)
    assert fault.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert dict(fault.value.trailing_metadata())["r1-reason"] == "attach_refused"


async def test_a_second_stream_with_the_same_worker_id_is_refused_and_the_first_stays(world: Any, says: Any) -> None:
    first = await world.worker(says("a</think>b"), worker_id="twin")
    with pytest.raises(grpc.aio.AioRpcError) as fault:
        await world.worker(worker_id="twin")
    assert fault.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert (await asking(world)).choices[0].message.content == "b"
    assert not first.submits.empty()


async def test_a_worker_id_is_free_again_once_its_stream_ended(world: Any, says: Any) -> None:
    first = await world.worker(worker_id="twin")
    await first.die()
    await world.until(lambda: not world.router.ranks.of("r1-nano"))
    await world.worker(says("a</think>b"), worker_id="twin")
    assert (await asking(world)).choices[0].message.content == "b"


@pytest.mark.parametrize("first", [pb.WorkerMessage(), pb.WorkerMessage(frame=pb.Frame())])
async def test_a_first_message_that_is_no_hello_is_refused(world: Any, first: pb.WorkerMessage) -> None:
    async with grpc.aio.insecure_channel(world.grpc) as channel:
        call = channel.stream_stream(
            "/r1.fleet.v1.Fleet/Attach",
            request_serializer=pb.WorkerMessage.SerializeToString,
            response_deserializer=pb.RouterMessage.FromString,
        )()
        await call.write(first)
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "first message must be hello" in await call.details()


async def test_a_second_hello_ends_the_stream_and_its_requests(world: Any) -> None:
    worker = await world.worker()
    request = asking(world)
    await worker.next_submit()
    await worker.write(pb.WorkerMessage(hello=worker.hello))
    code, details = await worker.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "hello once" in details
    with pytest.raises(openai.APIStatusError, match="worker that held this request is gone"):
        await request


async def test_frames_for_unknown_requests_are_counted_and_harm_nobody(world: Any, says: Any) -> None:
    worker = await world.worker(says("a</think>b"))
    await worker.send(pb.Delta(request_id=99, token_ids=[1]), pb.Delta(request_id=98, finish=pb.FINISH_STOP))
    assert (await asking(world)).choices[0].message.content == "b"
    assert world.metric("r1_stray_deltas_total") == 2


async def test_a_delta_that_breaks_one_generation_leaves_the_others_alone(
    world: Any, ids: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def feed(choice: Choice, token_ids: list[int]) -> Any:
        if list(token_ids) == poison:
            raise ZeroDivisionError
        return read(choice, token_ids)

    read, poison = Choice.feed, ids("poison")[:1]
    monkeypatch.setattr(Choice, "feed", feed)
    worker = await world.worker()
    bad = asking(world)
    bad_id = (await worker.next_submit()).request_id
    good = asking(world)
    good_id = (await worker.next_submit()).request_id
    good_delta = pb.Delta(request_id=good_id, token_ids=ids("a</think>b"), finish=pb.FINISH_STOP)
    await worker.send(pb.Delta(request_id=bad_id, token_ids=poison), good_delta)
    assert await worker.next_abort() == bad_id
    assert (await good).choices[0].message.content == "b"
    with pytest.raises(openai.InternalServerError, match="internal error"):
        await bad
    assert "broke its generation" in caplog.text


async def test_a_dying_worker_fails_its_requests_only_where_nobody_else_can_take_them(world: Any) -> None:
    worker = await world.worker()
    request = asking(world)
    await worker.next_submit()
    await worker.die()
    with pytest.raises(openai.APIStatusError) as fault:
        await request
    assert (fault.value.status_code, fault.value.code) == (503, "worker_lost")
    assert fault.value.response.headers["retry-after"] == "1"


async def test_requests_go_to_the_rank_with_fewer(world: Any) -> None:
    workers = [await world.worker(), await world.worker()]
    requests = [asking(world) for _ in range(6)]
    for worker in workers:
        for _ in range(3):
            await worker.next_submit()
    for worker in workers:
        await worker.die()
    await asyncio.gather(*requests, return_exceptions=True)


async def test_a_draining_rank_gets_nothing_new_and_finishes_what_it_has(world: Any, ids: Any) -> None:
    leaving = await world.worker()
    held = asking(world)
    submit = await leaving.next_submit()
    await leaving.send(draining=True)
    await world.until(lambda: not world.router.service.ready)
    with pytest.raises(openai.APIStatusError) as fault:
        await asking(world)
    assert fault.value.code == "no_workers"
    delta = pb.Delta(request_id=submit.request_id, token_ids=ids("a</think>b"), finish=pb.FINISH_STOP)
    await leaving.send(delta, draining=True)
    assert (await held).choices[0].message.content == "b"


async def test_a_full_fleet_refuses_with_a_time_to_retry(world_of: Any) -> None:
    plan = renamed(Plan.load("nano-tp1"), "tight", max_waiting_requests=1, max_queued_requests=1)
    world = await world_of([plan], policy="least_load")
    worker = await world.worker(plan=plan)
    seats = plan.engine.max_num_seqs + 1
    async with httpx.AsyncClient(base_url=world.http, limits=httpx.Limits(max_connections=None)) as http:
        held = [asyncio.create_task(http.post("/v1/chat/completions", json={"messages": ASK})) for _ in range(seats)]
        for _ in held:
            await worker.next_submit()
        queued = asyncio.create_task(http.post("/v1/chat/completions", json={"messages": ASK}))
        await world.until(lambda: world.router.service.desk.queued("tight") == 1)
        response = await http.post("/v1/chat/completions", json={"messages": ASK})
        queued.cancel()
        await worker.die()
        await asyncio.gather(*held)
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "fleet_saturated"
    assert 1 <= int(response.headers["retry-after"]) <= 60


async def test_a_request_waits_a_little_for_the_first_worker(world_of: Any, says: Any) -> None:
    world = await world_of(worker_wait_s=10)
    request = asking(world)
    await world.until(lambda: world.router.service.calls)
    await world.worker(says("a</think>b"))
    assert (await request).choices[0].message.content == "b"


async def test_two_models_have_their_own_workers(world_of: Any, says: Any) -> None:
    plans = [Plan.load("nano-tp1"), renamed(Plan.load("nano-tp1"), "other")]
    world = await world_of(plans)
    for plan, text in zip(plans, ("a</think>first", "a</think>second"), strict=True):
        await world.worker(says(text), plan=plan)
    assert (await asking(world, "r1-nano")).choices[0].message.content == "first"
    assert (await asking(world, "other")).choices[0].message.content == "second"
    with pytest.raises(openai.BadRequestError, match="name one of r1-nano, other"):
        await asking(world, "")


async def test_two_plans_of_one_model_share_its_requests(world_of: Any) -> None:
    plans = [Plan.load("nano-tp1"), Plan.load("nano-tp2-ep2")]
    world = await world_of(plans)
    workers = [await world.worker(plan=plan) for plan in plans]
    requests = [asking(world), asking(world)]
    for worker in workers:
        await worker.next_submit()
        await worker.die()
    await asyncio.gather(*requests, return_exceptions=True)


async def test_ready_waits_for_a_whole_gang(world_of: Any) -> None:
    plan = Plan.load("nano-dp2-ep2")
    world = await world_of([plan])
    async with httpx.AsyncClient(base_url=world.http) as http:
        await world.worker(plan=plan, gang_id="g", rank=0)
        half = await http.get("/ready")
        assert half.status_code == 503
        assert half.json()["models"] == {"r1-nano": {"ready": False, "ranks": 1}}
        second = await world.worker(plan=plan, gang_id="g", rank=1)
        assert (await http.get("/ready")).status_code == 200
        await second.send(draining=True)
        await world.until(lambda: not world.router.service.ready)
        assert (await http.get("/ready")).status_code == 503
        assert (await http.get("/health")).status_code == 200


async def test_two_models_are_both_awaited_and_then_one_that_ends_does_not_end_the_other(
    world_of: Any,
) -> None:
    old = Plan.load("nano-tp1")
    new = renamed(old, "next")
    world = await world_of([new, old])
    service = world.router.service
    await world.worker(plan=old)
    assert not service.ready
    late = await world.worker(plan=new)
    assert service.ready
    await late.die()
    await world.until(lambda: not world.router.ranks.of("next"))
    assert service.ready


async def test_an_alias_may_name_another_model_than_when_its_ranks_attached(world_of: Any, says: Any) -> None:
    old = Plan.load("nano-tp1")
    alias = old.model.aliases[0]
    bare = old.model_copy(update={"model": old.model.model_copy(update={"aliases": ()})})
    new = renamed(old, "next")
    new = new.model_copy(update={"model": new.model.model_copy(update={"aliases": (alias,)})})
    world = await world_of([new, bare])
    await world.worker(says("a</think>old"), plan=old)  # started with the alias
    await world.worker(says("a</think>new"), plan=renamed(old, "next"))  # and without
    answer = await asking(world, alias)
    assert (answer.choices[0].message.content, answer.model) == ("new", "next")
    assert (await asking(world, "r1-nano")).choices[0].message.content == "old"


async def test_a_ranks_kv_events_decide_what_its_cache_is_believed_to_hold(world: Any) -> None:
    worker = await world.worker()
    prefix, name = world.router.service.desk._dispatchers["r1-nano"].prefix, worker.hello.worker_id
    prompt = list(range(200))
    chain = prefix.chain(prompt)
    prefix.sent(name, chain)
    first, second, third = (int.from_bytes(block, "big") for block in chain)

    async def tell(**change: Any) -> None:
        await worker.write(pb.WorkerMessage(frame=pb.Frame(kv=pb.KvChange(**change))))

    await tell(cleared=True, stored=[first, second, third])
    await tell(removed=[third])
    await world.until(lambda: prefix.cached(chain, [name]) == {name: 128})
    await tell(cleared=True)
    await world.until(lambda: prefix.cached(chain, [name]) == {})
    prefix.sent(name, chain)
    assert prefix.cached(chain, [name]) == {}
