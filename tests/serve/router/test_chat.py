"""The openai SDK against the router, with a scripted worker behind it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from r1_serve.protos import fleet_pb2 as pb

QUESTION: list[Any] = [{"role": "user", "content": "What is 2 + 2?"}]
EOS = "<｜end▁of▁sentence｜>"
THOUGHT = f"2 + 2 = 4\n</think>\n\nThe answer is 4.{EOS}"


async def collect(stream: Any) -> tuple[dict[int, str], dict[int, str], dict[int, str], Any]:
    """Thinking, answers and finish reasons by choice, and the usage."""
    thinking: dict[int, str] = {}
    answers: dict[int, str] = {}
    reasons: dict[int, str] = {}
    usage = None
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            new = getattr(choice.delta, "reasoning_content", None) or ""
            assert new == (getattr(choice.delta, "reasoning", None) or "")
            thinking[choice.index] = thinking.get(choice.index, "") + new
            answers[choice.index] = answers.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                assert choice.index not in reasons
                reasons[choice.index] = choice.finish_reason
    return thinking, answers, reasons, usage


async def test_an_answer_has_thinking_and_answer_apart(world: Any, says: Any) -> None:
    await world.worker(says(THOUGHT))
    done = await world.client.chat.completions.create(model="r1-nano", messages=QUESTION)
    message = done.choices[0].message
    assert message.content == "The answer is 4."
    assert message.reasoning_content == message.reasoning == "2 + 2 = 4"
    assert done.choices[0].finish_reason == "stop"
    assert done.model == "r1-nano"


@pytest.mark.parametrize("per_frame", [1, 5, 1000])
async def test_a_stream_gives_the_same_text_in_pieces(world: Any, says: Any, per_frame: int) -> None:
    await world.worker(says(THOUGHT, per_frame=per_frame))
    stream = await world.client.chat.completions.create(model="deepseek-r1", messages=QUESTION, stream=True)
    thinking, answers, reasons, usage = await collect(stream)
    assert (thinking, answers, reasons) == ({0: "2 + 2 = 4"}, {0: "The answer is 4."}, {0: "stop"})
    assert usage is None


async def test_the_stream_on_the_wire_is_server_sent_events_up_to_done(world: Any, says: Any) -> None:
    await world.worker(says(THOUGHT))
    async with httpx.AsyncClient(base_url=world.http) as http:
        body = {"messages": QUESTION, "stream": True, "stream_options": {"include_usage": True}}
        response = await http.post("/v1/chat/completions", json=body, headers={"X-Request-Id": "my.id-1"})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-request-id"] == "my.id-1"
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert {(chunk["id"], chunk["object"], chunk["model"]) for chunk in chunks} == {
        ("chatcmpl-my.id-1", "chat.completion.chunk", "r1-nano")
    }
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] > 0


async def test_chunks_count_along_where_that_is_asked_for(
    world: Any, ids: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Neither a busy loop nor a slow reader merges pieces here: each is sent once the one before it was read.
    monkeypatch.setattr(world.router.service.pace, "observe", lambda share: None)
    worker = await world.worker()
    options = {"include_usage": True, "continuous_usage_stats": True}
    asked = world.client.chat.completions.create(
        model="r1-nano", messages=QUESTION, stream=True, stream_options=options
    )
    opening = asyncio.create_task(asked)
    submit = await worker.next_submit()
    counted: list[Any] = []
    for piece in ("a", "b", "</think>c", "d", "e"):
        await worker.send(pb.Delta(request_id=submit.request_id, token_ids=ids(piece)))
        stream = await opening
        seen = False
        while not seen:
            chunk = await anext(stream)
            counted.append((chunk.choices, chunk.usage))
            seen = chunk.usage is not None
    await worker.send(pb.Delta(request_id=submit.request_id, token_ids=ids(EOS), finish=pb.FINISH_STOP))
    counted += [(chunk.choices, chunk.usage) async for chunk in stream]
    so_far = [usage for choices, usage in counted if choices and usage]
    last = counted[-1][1]
    tokens = [usage.completion_tokens for usage in so_far]
    assert tokens == sorted(set(tokens))
    assert len(tokens) > 3
    assert tokens[-1] <= last.completion_tokens <= tokens[-1] + 1  # the end-of-sequence token has no text
    assert {usage.prompt_tokens for usage in so_far} == {last.prompt_tokens}
    assert so_far[-1].completion_tokens_details.reasoning_tokens == last.completion_tokens_details.reasoning_tokens


@pytest.mark.parametrize("given", ["a" * 65, "no spaces", "-x", "http://x/", ""])
async def test_a_clients_request_id_that_is_no_short_token_is_replaced(world: Any, given: str) -> None:
    async with httpx.AsyncClient(base_url=world.http) as http:
        response = await http.get("/health", headers={"X-Request-Id": given})
    assert len(response.headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    ("text", "finish", "reasoning", "reason"),
    [
        (f"1+1\n</think>\n\n2{EOS}", pb.FINISH_STOP, "1+1\n", "stop"),
        (f"1+1{EOS}", pb.FINISH_STOP, "1+1", "stop"),
        (f"</think>\n\n2{EOS}", pb.FINISH_STOP, "", "stop"),
        ("1+", pb.FINISH_LENGTH, "1+", "length"),
        (f"<think>\n1+1\n</think>\n\n2{EOS}", pb.FINISH_STOP, "\n1+1\n", "stop"),
    ],
    ids=["prompt-opened", "missing </think>", "empty thought", "length stop in thinking", "opened by the model"],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_usage_is_exact(
    world: Any, says: Any, ids: Any, text: str, finish: pb.FinishReason, reasoning: str, reason: str, stream: bool
) -> None:
    worker = await world.worker(says(text, finish=finish))
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    done = await world.client.chat.completions.create(model="r1-nano", messages=QUESTION, **options)
    if stream:
        _, _, reasons, usage = await collect(done)
    else:
        reasons, usage = {0: done.choices[0].finish_reason}, done.usage
    prompt = len((await worker.next_submit()).prompt_token_ids)
    assert reasons == {0: reason}
    assert usage.completion_tokens == len(ids(text))
    assert usage.completion_tokens_details.reasoning_tokens == len(ids(reasoning))
    assert (usage.prompt_tokens, usage.total_tokens) == (prompt, prompt + len(ids(text)))
    assert usage.prompt_tokens_details.cached_tokens == 0
    assert (usage.prompt_cache_hit_tokens, usage.prompt_cache_miss_tokens) == (0, prompt)


async def test_cached_tokens_are_reported_as_openai_and_as_deepseek_do(world: Any, ids: Any) -> None:
    await world.worker(lambda _: [pb.Delta(token_ids=ids(THOUGHT), cached_tokens=3, finish=pb.FINISH_STOP)])
    usage = (await world.client.chat.completions.create(model="r1-nano", messages=QUESTION)).usage
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_cache_hit_tokens == 3
    assert usage.prompt_cache_miss_tokens == usage.prompt_tokens - 3


async def test_several_choices_are_several_engine_requests_with_one_usage(world: Any, ids: Any) -> None:
    worker = await world.worker()
    asking = asyncio.create_task(
        world.client.chat.completions.create(model="r1-nano", messages=QUESTION, n=3, seed=7, temperature=1)
    )
    submits = [await worker.next_submit() for _ in range(3)]
    assert [submit.sampling.seed for submit in submits] == [7, 8, 9]
    texts = [f"{i}\n</think>\n\nanswer {i}{EOS}" for i in range(3)]
    for i in (2, 0, 1):
        await worker.send(pb.Delta(request_id=submits[i].request_id, token_ids=ids(texts[i]), finish=pb.FINISH_STOP))
    done = await asking
    assert [choice.message.content for choice in done.choices] == ["answer 0", "answer 1", "answer 2"]
    assert [choice.message.reasoning for choice in done.choices] == ["0", "1", "2"]
    assert done.usage.completion_tokens == sum(len(ids(text)) for text in texts)
    assert done.usage.completion_tokens_details.reasoning_tokens == 3 * len(ids("1\n"))
    assert done.usage.prompt_tokens == len(submits[0].prompt_token_ids)


async def test_choices_of_a_stream_interleave_by_index(world: Any, ids: Any) -> None:
    worker = await world.worker()
    asking = asyncio.create_task(
        world.client.chat.completions.create(model="r1-nano", messages=QUESTION, n=2, stream=True)
    )
    a, b = [await worker.next_submit() for _ in range(2)]
    for part, finish in (("x</think>y", pb.FINISH_NONE), ("z", pb.FINISH_LENGTH)):
        await worker.send(
            pb.Delta(request_id=a.request_id, token_ids=ids(part), finish=finish),
            pb.Delta(request_id=b.request_id, token_ids=ids(part), finish=finish),
        )
    thinking, answers, reasons, _ = await collect(await asking)
    assert (thinking, answers) == ({0: "x", 1: "x"}, {0: "yz", 1: "yz"})
    assert reasons == {0: "length", 1: "length"}


@pytest.mark.parametrize("stream", [False, True])
async def test_characters_of_several_tokens_arrive_whole(world: Any, says: Any, stream: bool) -> None:
    await world.worker(says(f"日本語\n</think>\n\nnaïve 😀{EOS}"))
    done = await world.client.chat.completions.create(model="r1-nano", messages=QUESTION, stream=stream)
    if stream:
        thinking, answers, _, _ = await collect(done)
        assert (thinking[0], answers[0]) == ("日本語", "naïve 😀")
    else:
        assert (done.choices[0].message.reasoning, done.choices[0].message.content) == ("日本語", "naïve 😀")


async def test_a_stop_string_ends_the_choice_and_the_engines_work(world: Any, ids: Any) -> None:
    worker = await world.worker()
    asking = asyncio.create_task(world.client.chat.completions.create(model="r1-nano", messages=QUESTION, stop=["34"]))
    submit = await worker.next_submit()
    await worker.send(pb.Delta(request_id=submit.request_id, token_ids=ids("34</think>\n\n123")))
    await worker.send(pb.Delta(request_id=submit.request_id, token_ids=ids("45")))
    done = await asking
    assert (done.choices[0].message.reasoning, done.choices[0].message.content) == ("34", "12")
    assert done.choices[0].finish_reason == "stop"
    assert done.usage.completion_tokens == len(ids("34</think>\n\n1234"))
    assert await worker.next_abort() == submit.request_id


async def test_the_checkpoints_defaults_reach_the_engine(world: Any, says: Any) -> None:
    worker = await world.worker(says(THOUGHT))
    await world.client.chat.completions.create(model="r1-nano", messages=QUESTION)
    submit = await worker.next_submit()
    sampling = submit.sampling
    assert (round(sampling.temperature, 6), round(sampling.top_p, 6)) == (0.6, 0.95)
    assert sampling.repetition_penalty == 1
    assert sampling.max_tokens == 1536
    assert list(sampling.stop_token_ids) == [1]
    assert not sampling.HasField("seed")


async def test_without_max_tokens_the_default_is_cut_to_the_room_left(world: Any, says: Any) -> None:
    worker = await world.worker(says(THOUGHT))
    long: list[Any] = [{"role": "user", "content": "7" * 1000}]
    await world.client.chat.completions.create(model="r1-nano", messages=long)
    submit = await worker.next_submit()
    assert submit.sampling.max_tokens == 2048 - len(submit.prompt_token_ids)


@pytest.mark.parametrize(("length", "max_tokens", "field"), [(3000, None, "messages"), (1000, 1500, "max_tokens")])
async def test_what_exceeds_the_context_is_refused_with_the_numbers(
    world: Any, length: int, max_tokens: int | None, field: str
) -> None:
    worker = await world.worker()
    long: list[Any] = [{"role": "user", "content": "7" * length}]
    with pytest.raises(openai.BadRequestError) as fault:
        await world.client.chat.completions.create(model="r1-nano", messages=long, max_tokens=max_tokens)
    assert fault.value.code == "context_length_exceeded"
    assert fault.value.param == field
    assert "2048" in fault.value.message
    assert worker.submits.empty()


async def test_an_idle_stream_gets_keep_alive_comments(world_of: Any, ids: Any) -> None:
    world = await world_of(keep_alive_s=0.05)
    worker = await world.worker()
    async with (
        httpx.AsyncClient(base_url=world.http) as http,
        http.stream("POST", "/v1/chat/completions", json={"messages": QUESTION, "stream": True}) as response,
    ):
        lines = response.aiter_lines()
        while await anext(lines) != ": keep-alive":
            pass
        submit = await worker.next_submit()
        await worker.send(pb.Delta(request_id=submit.request_id, token_ids=ids(THOUGHT), finish=pb.FINISH_STOP))
        assert "data: [DONE]" in [line async for line in lines]


async def test_a_slow_client_gets_everything_in_few_pieces(world: Any, says: Any, ids: Any) -> None:
    """While the client does not read, text is merged: megabytes of chunks would be the alternative."""
    worker = await world.worker()
    asking = asyncio.create_task(
        world.client.chat.completions.create(
            model="r1-nano", messages=QUESTION, n=1, stream=True, extra_body={"loop_guard": False}
        )
    )
    submit = await worker.next_submit()
    call = next(iter(world.router.service.calls))
    part = ids("so " * 50)
    await worker.send(pb.Delta(request_id=submit.request_id, token_ids=[*ids("4</think>"), *part]))
    stream = await asking
    for _ in range(400):
        await worker.send(pb.Delta(request_id=submit.request_id, token_ids=part))
    await worker.send(pb.Delta(request_id=submit.request_id, token_ids=ids(EOS), finish=pb.FINISH_STOP))
    assert len(call.waiting) <= 3
    thinking, answers, _, _ = await collect(stream)
    assert thinking[0] == "4"
    assert answers[0] == "so " * 50 * 401


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("finish", "status", "code"), [(pb.FINISH_REJECTED, 400, "engine_rejected"), (pb.FINISH_ERROR, 503, "worker_lost")]
)
async def test_an_error_before_the_first_token_has_its_own_status(
    world: Any, stream: bool, finish: pb.FinishReason, status: int, code: str
) -> None:
    await world.worker(lambda _: [pb.Delta(finish=finish, error="because")])
    with pytest.raises(openai.APIStatusError) as fault:
        await world.client.chat.completions.create(model="r1-nano", messages=QUESTION, stream=stream)
    assert fault.value.status_code == status
    assert fault.value.code == code
    assert "because" in fault.value.message


async def test_an_error_within_a_stream_is_an_event_and_no_done_follows(world: Any, ids: Any) -> None:
    worker = await world.worker(lambda _: [pb.Delta(token_ids=ids("2 + 2"))])
    async with (
        httpx.AsyncClient(base_url=world.http) as http,
        http.stream("POST", "/v1/chat/completions", json={"messages": QUESTION, "stream": True}) as response,
    ):
        lines = response.aiter_lines()
        while "reasoning" not in await anext(lines):
            pass
        await worker.die()
        rest = [line async for line in lines if line]
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "worker_lost"
    assert "data: [DONE]" not in rest
    assert response.status_code == 200


async def test_the_sdk_raises_an_error_that_comes_within_a_stream(world: Any, ids: Any) -> None:
    def script(_: pb.Submit) -> list[pb.Delta]:
        return [pb.Delta(token_ids=ids("2 +")), pb.Delta(finish=pb.FINISH_ERROR, error="engine died")]

    await world.worker(script)
    with pytest.raises(openai.APIError, match="engine died"):
        await collect(await world.client.chat.completions.create(model="r1-nano", messages=QUESTION, stream=True))


async def test_models_are_listed_with_their_aliases(world: Any) -> None:
    names = [model.id async for model in world.client.models.list()]
    assert names == ["r1-nano", "deepseek-r1", "deepseek-reasoner"]
    assert (await world.client.models.retrieve("deepseek-r1")).id == "deepseek-r1"
