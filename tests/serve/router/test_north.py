"""A real gRPC client against the router."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from r1_serve.protos import fleet_pb2 as fleet
from r1_serve.protos import reasoning_pb2 as pb
from r1_serve.protos import reasoning_pb2_grpc as rpc
from r1_serve.router import pace

EOS = "<｜end▁of▁sentence｜>"
THOUGHT = f"2 + 2 = 4\n</think>\n\nThe answer is 4.{EOS}"


def ask(**fields: Any) -> pb.ChatRequest:
    return pb.ChatRequest(**{"messages": [pb.Message(role="user", content="What is 2 + 2?")], **fields})


@pytest.fixture
async def channel(world: Any) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(world.grpc) as channel:
        yield channel


async def events_of(call: Any) -> list[pb.ChatEvent]:
    return [event async for event in call]


def text(events: list[pb.ChatEvent], kind: str, index: int = 0) -> str:
    deltas = [getattr(event, kind) for event in events if event.WhichOneof("event") == kind]
    return "".join(delta.text for delta in deltas if delta.index == index)


async def test_a_chat_starts_thinks_answers_finishes_and_ends_with_exact_usage(
    world: Any, channel: Any, says: Any, ids: Any
) -> None:
    worker = await world.worker(says(THOUGHT))
    call = rpc.ReasoningStub(channel).Chat(ask(model="deepseek-r1"), metadata=(("x-request-id", "mine"),))
    events = await events_of(call)
    assert dict(await call.initial_metadata())["x-request-id"] == "mine"
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started"
    assert kinds[-2:] == ["finished", "usage"]
    assert sorted(kinds[1:-2], reverse=True) == kinds[1:-2]  # thinking, then answer
    assert (events[0].started.request_id, events[0].started.model) == ("mine", "r1-nano")
    assert (text(events, "thinking"), text(events, "answer")) == ("2 + 2 = 4", "The answer is 4.")
    assert events[-2].finished.finish_reason == "stop"
    usage = events[-1].usage
    assert usage.prompt_tokens == len((await worker.next_submit()).prompt_token_ids)
    assert usage.completion_tokens == len(ids(THOUGHT))
    assert usage.reasoning_tokens == len(ids("2 + 2 = 4\n"))
    assert usage.answer_tokens == len(ids("\n\nThe answer is 4."))
    assert 0 < usage.time_to_first_token_seconds <= usage.time_to_first_answer_token_seconds <= usage.total_seconds


async def test_several_choices_share_a_stream(world: Any, channel: Any, ids: Any) -> None:
    worker = await world.worker()
    call = asyncio.create_task(events_of(rpc.ReasoningStub(channel).Chat(ask(n=2))))
    for i in range(2):
        submit = await worker.next_submit()
        delta = fleet.Delta(request_id=submit.request_id, token_ids=ids(f"{i}</think>{i}"), finish=fleet.FINISH_LENGTH)
        await worker.send(delta)
    events = await call
    assert [text(events, "thinking", i) + text(events, "answer", i) for i in range(2)] == ["00", "11"]
    assert sum(event.WhichOneof("event") == "finished" for event in events) == 2
    assert events[-1].usage.reasoning_tokens == 2


async def test_sampling_reaches_the_engine(world: Any, channel: Any, says: Any) -> None:
    worker = await world.worker(says(THOUGHT))
    await events_of(
        rpc.ReasoningStub(channel).Chat(
            ask(
                temperature=0,
                top_p=0.5,
                top_k=7,
                min_p=0.25,
                seed=-3,
                max_tokens=9,
                min_tokens=4,
                presence_penalty=-1,
                ignore_eos=True,
            )
        )
    )
    sampling = (await worker.next_submit()).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0, 0.5, 7, 0.25)
    assert (sampling.seed, sampling.max_tokens, sampling.min_tokens, sampling.presence_penalty) == (-3, 9, 4, -1)
    assert (sampling.ignore_eos, list(sampling.stop_token_ids)) == (True, [])


BAD = [
    (ask(messages=[]), "messages"),
    (ask(temperature=5), "temperature"),
    (ask(temperature=float("nan")), "temperature"),
    (ask(max_tokens=0), "max_tokens"),
    (ask(n=0), "n"),
    (ask(n=17), "n"),
    (ask(stop=["a"] * 5), "stop"),
    (ask(stop=[""]), "stop.0"),
    (ask(messages=[pb.Message(role="tool", content="x")]), "messages.0.role"),
    (ask(messages=[pb.Message(role="assistant", content="x")]), "messages"),
]


@pytest.mark.parametrize(("request_", "field"), BAD, ids=[f"{field}-{i}" for i, (_, field) in enumerate(BAD)])
async def test_a_bad_field_is_an_invalid_argument_that_names_it(
    world: Any, channel: Any, request_: pb.ChatRequest, field: str
) -> None:
    worker = await world.worker()
    with pytest.raises(grpc.aio.AioRpcError) as fault:
        await events_of(rpc.ReasoningStub(channel).Chat(request_))
    assert fault.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    trailers = dict(fault.value.trailing_metadata())
    assert (trailers["r1-reason"], trailers["r1-field"]) == ("invalid_request", field)
    assert field in fault.value.details()
    assert worker.submits.empty()


async def test_bytes_that_are_no_utf8_are_an_invalid_argument(world: Any, channel: Any) -> None:
    await world.worker()
    raw = channel.unary_stream("/r1.v1.Reasoning/Chat")
    for data in (b"\x0a\x01\xff", b"\xff\xff\xff"):
        with pytest.raises(grpc.aio.AioRpcError) as fault:
            await events_of(raw(data))
        assert fault.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_request_over_the_limit_is_an_invalid_argument(world: Any, channel: Any) -> None:
    request = ask(messages=[pb.Message(role="user", content="x" * (4 << 20))])
    with pytest.raises(grpc.aio.AioRpcError, match="4194304") as fault:
        await events_of(rpc.ReasoningStub(channel).Chat(request))
    assert fault.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(fault.value.trailing_metadata())["r1-reason"] == "body_too_large"


@pytest.mark.parametrize(
    ("model", "code", "reason"),
    [
        ("gpt-9", grpc.StatusCode.NOT_FOUND, "model_not_found"),
        ("r1-nano", grpc.StatusCode.UNAVAILABLE, "no_workers"),
    ],
)
async def test_other_refusals_have_their_own_status(
    world: Any, channel: Any, model: str, code: grpc.StatusCode, reason: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as fault:
        await events_of(rpc.ReasoningStub(channel).Chat(ask(model=model)))
    assert fault.value.code() is code
    trailers = dict(fault.value.trailing_metadata())
    assert trailers["r1-reason"] == reason
    assert ("r1-retry-after" in trailers) == (reason == "no_workers")


async def test_a_fault_of_ours_shows_its_request_id_and_nothing_else(
    world: Any, channel: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("secret")

    await world.worker()
    monkeypatch.setattr(world.router.service.desk, "admit", broken)
    with pytest.raises(grpc.aio.AioRpcError) as fault:
        await events_of(rpc.ReasoningStub(channel).Chat(ask(), metadata=(("x-request-id", "mine"),)))
    assert fault.value.code() is grpc.StatusCode.INTERNAL
    assert "mine" in fault.value.details()
    assert "secret" not in fault.value.details()
    assert "ZeroDivisionError" in caplog.text


async def test_where_the_loop_is_busy_text_is_merged_and_none_is_lost(
    world: Any, channel: Any, says: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "BUSY", -1.0)  # whatever it does
    await world.worker(says(THOUGHT))
    calls = [events_of(rpc.ReasoningStub(channel).Chat(ask())) for _ in range(32)]
    for events in await asyncio.gather(*calls):
        assert (text(events, "thinking"), text(events, "answer")) == ("2 + 2 = 4", "The answer is 4.")


async def test_models_and_status_tell_what_is_served_and_by_whom(world: Any, channel: Any) -> None:
    stub = rpc.ReasoningStub(channel)
    assert [(m.id, list(m.aliases), m.ready) for m in (await stub.Models(pb.ModelsRequest())).models] == [
        ("r1-nano", ["deepseek-r1", "deepseek-reasoner"], False)
    ]
    assert not (await stub.Status(pb.StatusRequest())).ready
    worker = await world.worker()
    await worker.send(load=fleet.Load(running=2, waiting=1, kv_usage=0.5))
    status = await stub.Status(pb.StatusRequest())
    while not status.ranks[0].running:
        status = await stub.Status(pb.StatusRequest())
    assert status.ready
    assert (status.ranks[0].worker_id, status.ranks[0].waiting, status.ranks[0].kv_usage) == ("w0", 1, 0.5)


async def test_grpc_health_follows_the_ranks(world: Any, channel: Any) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="r1.v1.Reasoning"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    worker = await world.worker()
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    await worker.die()
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()


async def test_reflection_lists_the_services(channel: Any) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {service.name for service in (await call.read()).list_services_response.service}
    assert {"r1.v1.Reasoning", "r1.fleet.v1.Fleet", "grpc.health.v1.Health"} <= names
    assert descriptor_pool.Default().FindServiceByName("r1.v1.Reasoning")
