from __future__ import annotations

import builtins
from typing import Any

import grpc
import httpx
import openai
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from r1_serve.errors import StartupError
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.protos import reasoning_pb2 as north
from r1_serve.protos import reasoning_pb2_grpc as rpc
from r1_serve.settings import RouterSettings, TraceSettings
from r1_serve.tracing import tracing
from r1_serve.workers.generations import Generations

SECRET = "xyzzy-the-secret"
ASK: list[Any] = [{"role": "user", "content": f"{SECRET} 1 + 1"}]
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
UNSAMPLED = f"00-{TRACE_ID}-b7ad6b7169203331-00"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def world(world_of: Any, spans: InMemorySpanExporter) -> Any:
    return await world_of(exporter=spans)


def named(spans: InMemorySpanExporter, name: str) -> Any:
    (found,) = [span for span in spans.get_finished_spans() if span.name == name]
    return found


async def ask(world: Any, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=world.http) as http:
        body = {"model": "deepseek-r1", "messages": ASK, "temperature": 0.5, "thinking_token_budget": 40}
        return await http.post("/v1/chat/completions", json=body, headers=headers)


async def test_a_call_is_a_span_below_the_clients_with_genai_attributes(
    world: Any, says: Any, ids: Any, spans: InMemorySpanExporter
) -> None:
    worker = await world.worker(says("1 + 1</think>2 zebra"))
    assert (await ask(world, traceparent=PARENT, **{"x-request-id": "req-7"})).status_code == 200
    submit = await worker.next_submit()
    chat, queue = named(spans, "chat r1-nano"), named(spans, "queue")
    assert f"{chat.context.trace_id:032x}" == TRACE_ID
    assert f"{chat.parent.span_id:016x}" == "b7ad6b7169203331"
    assert chat.kind.name == "SERVER"
    assert queue.parent.span_id == chat.context.span_id
    assert submit.traceparent == f"00-{TRACE_ID}-{chat.context.span_id:016x}-01"
    told = dict(chat.attributes)
    assert told["gen_ai.operation.name"] == "chat"
    assert (told["gen_ai.request.model"], told["gen_ai.response.model"]) == ("deepseek-r1", "r1-nano")
    assert told["gen_ai.request.temperature"] == 0.5
    assert told["gen_ai.usage.input_tokens"] == len(submit.prompt_token_ids)
    assert told["gen_ai.usage.reasoning.output_tokens"] == len(ids("1 + 1"))
    assert told["gen_ai.usage.output_tokens"] == len(ids("1 + 1</think>2 zebra"))
    assert told["gen_ai.response.finish_reasons"] == ("stop",)
    assert (told["r1.request_id"], told["r1.tenant"], told["r1.thinking_budget"]) == ("req-7", "default", 40)
    assert [event.name for event in chat.events] == ["first token", "thought ended"]
    assert chat.start_time <= chat.events[0].timestamp <= chat.events[1].timestamp <= chat.end_time


async def test_a_grpc_call_is_traced_alike(world: Any, says: Any, spans: InMemorySpanExporter) -> None:
    await world.worker(says("1</think>2"))
    request = north.ChatRequest(messages=[north.Message(role="user", content=SECRET)])
    async with grpc.aio.insecure_channel(world.grpc) as channel:
        async for _ in rpc.ReasoningStub(channel).Chat(request, metadata=(("traceparent", PARENT),)):
            pass
    assert f"{named(spans, 'chat r1-nano').context.trace_id:032x}" == TRACE_ID


async def test_no_span_holds_text_of_prompt_thought_or_answer(
    world: Any, says: Any, spans: InMemorySpanExporter
) -> None:
    await world.worker(says("why zebra</think>because zebra"))
    await ask(world)
    text = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "chat r1-nano" in text
    assert SECRET not in text
    assert "zebra" not in text


async def test_a_failure_is_told_by_its_reason(world: Any, spans: InMemorySpanExporter) -> None:
    with pytest.raises(openai.APIStatusError):
        await world.client.chat.completions.create(model="r1-nano", messages=ASK)
    chat = named(spans, "chat r1-nano")
    assert chat.attributes["error.type"] == "no_workers"
    assert chat.status.status_code.name == "ERROR"


async def test_a_client_that_does_not_sample_is_not_traced_anywhere(
    world: Any, says: Any, spans: InMemorySpanExporter
) -> None:
    worker = await world.worker(says("1</think>2"))
    await ask(world, traceparent=UNSAMPLED)
    assert spans.get_finished_spans() == ()
    assert (await worker.next_submit()).traceparent.endswith("-00")


async def test_without_an_endpoint_there_is_no_trace_and_no_context_on_the_stream(world_of: Any, says: Any) -> None:
    world = await world_of()
    worker = await world.worker(says("1</think>2"))
    assert (await ask(world, traceparent=PARENT)).status_code == 200
    assert (await worker.next_submit()).traceparent == ""


def test_without_the_packages_an_endpoint_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(StartupError, match=r"r1-serve\[traces\]"):
        tracing(RouterSettings(otlp_endpoint="http://collector:4317"), "r1-router")
    assert tracing(RouterSettings(), "r1-router") is None


class Engine:
    """Takes a request and notes with which context; finishes nothing."""

    def __init__(self) -> None:
        self.headers: list[Any] = []

    async def add_request(
        self, request_id: str, prompt: Any, params: Any, *, priority: int, trace_headers: Any = None
    ) -> Any:
        if prompt["prompt_token_ids"] == [666]:
            raise ValueError(SECRET)
        self.headers.append(trace_headers)
        return object()

    async def abort(self, request_id: str) -> None:
        pass


class Outbox:
    def send(self, frame: pb.Frame) -> None:
        pass


def submit(request_id: int, *prompt: int, traceparent: str = PARENT) -> pb.Submit:
    sampling = pb.Sampling(temperature=0, top_p=1, repetition_penalty=1, max_tokens=8)
    return pb.Submit(
        request_id=request_id, prompt_token_ids=prompt or (1, 2), sampling=sampling, traceparent=traceparent
    )


async def test_a_rank_continues_the_trace_and_hands_it_to_vllm(spans: InMemorySpanExporter, hello: pb.Hello) -> None:
    engine, outbox = Engine(), Outbox()
    generations = Generations(tracing=tracing(TraceSettings(), "r1-worker", spans), hello=hello)
    generations.serve(engine)
    generations.open(outbox)
    await generations.submit(outbox, submit(1))
    await generations.abort(outbox, 1)
    span = named(spans, "generate")
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert engine.headers == [{"traceparent": f"00-{TRACE_ID}-{span.context.span_id:016x}-01"}]
    assert span.attributes["gen_ai.usage.input_tokens"] == 2
    assert span.attributes["gen_ai.response.finish_reasons"] == ("abort",)
    assert span.attributes["r1.worker_id"] == hello.worker_id


async def test_what_the_engine_refuses_is_an_error_without_its_text(spans: InMemorySpanExporter) -> None:
    generations, outbox = Generations(tracing=tracing(TraceSettings(), "r1-worker", spans)), Outbox()
    generations.serve(Engine())
    await generations.submit(outbox, submit(1, 666))
    span = named(spans, "generate")
    assert span.attributes["error.type"] == "rejected"
    assert SECRET not in span.to_json()


async def test_a_request_without_context_is_not_traced_by_a_rank(spans: InMemorySpanExporter) -> None:
    engine, outbox = Engine(), Outbox()
    generations = Generations(tracing=tracing(TraceSettings(), "r1-worker", spans))
    generations.serve(engine)
    await generations.submit(outbox, submit(1, traceparent=""))
    assert engine.headers == [None]
    await generations.abort(outbox, 1)
    assert spans.get_finished_spans() == ()
