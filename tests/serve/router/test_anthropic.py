"""Anthropic's Messages API through Anthropic's own SDK."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx
import pytest
from r1_cluster.routing.tenants import hash_key
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.router.pace import LONGEST_S

ASK: list[Any] = [{"role": "user", "content": "x"}]
TEXT = "1 + 1\n</think>\n\nIt is 2.<｜end▁of▁sentence｜>"


@pytest.fixture
async def client(world: Any) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=world.http, api_key="k", max_retries=0) as made:
        yield made


async def test_a_message_has_its_thought_its_text_and_exact_usage(world: Any, client: Any, says: Any, ids: Any) -> None:
    worker = await world.worker(says(TEXT))
    done = await client.messages.create(
        model="r1-nano",
        max_tokens=100,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=[{"role": "user", "content": [{"type": "text", "text": "1 + "}, {"type": "text", "text": "1?"}]}],
    )
    thought, text = done.content
    assert (thought.type, thought.thinking, thought.signature) == ("thinking", "1 + 1", done.id.removeprefix("msg_"))
    assert (text.type, text.text) == ("text", "It is 2.")
    assert (done.type, done.role, done.model, done.stop_reason) == ("message", "assistant", "r1-nano", "end_turn")
    submit = worker.submits.get_nowait()
    assert done.usage.input_tokens == len(submit.prompt_token_ids)
    assert done.usage.output_tokens == len(ids(TEXT))
    assert done.usage.output_tokens_details.thinking_tokens == len(ids("1 + 1\n"))
    assert submit.sampling.max_tokens == 100


async def test_a_stream_opens_and_closes_each_block_and_adds_up_to_the_same(world: Any, client: Any, says: Any) -> None:
    await world.worker(says(TEXT))
    kinds: list[str] = []
    async with client.messages.stream(model="r1-nano", max_tokens=100, messages=ASK) as stream:
        async for event in stream:
            if not kinds or kinds[-1] != event.type:
                kinds.append(event.type)
        final = await stream.get_final_message()
    raw = [kind for kind in kinds if kind not in ("thinking", "text", "signature", "content_block_delta")]
    block = ["content_block_start", "content_block_stop"]
    assert raw == ["message_start", *block, *block, "message_delta", "message_stop"]
    assert [(b.type, getattr(b, "thinking", None) or b.text) for b in final.content] == [
        ("thinking", "1 + 1"),
        ("text", "It is 2."),
    ]
    assert final.content[0].signature
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens_details.thinking_tokens > 0


async def test_a_busy_loop_that_holds_text_back_writes_the_same_blocks(world: Any, client: Any, ids: Any) -> None:
    world.router.service.pace.interval_s = LONGEST_S
    worker = await world.worker()

    async def answer() -> None:
        submit = await worker.next_submit()
        for piece in ("a", "b", "</think>", "c", "d", "e"):
            await worker.send(pb.Delta(request_id=submit.request_id, token_ids=ids(piece)))
        await worker.send(pb.Delta(request_id=submit.request_id, finish=pb.FINISH_STOP))

    for _ in range(20):  # which of them are held differs
        sending = asyncio.create_task(answer())
        kinds = []
        async with await client.messages.create(model="r1-nano", max_tokens=9, messages=ASK, stream=True) as stream:
            async for event in stream:
                if event.type != "content_block_delta":
                    kinds.append((event.type, getattr(event, "index", None)))
        await sending
        blocks = [(kind, index) for index in (0, 1) for kind in ("content_block_start", "content_block_stop")]
        assert kinds == [("message_start", None), *blocks, ("message_delta", None), ("message_stop", None)]


async def test_the_events_are_named_and_ordered_as_anthropic_writes_them(world: Any, says: Any) -> None:
    await world.worker(says("a</think>b"))
    async with httpx.AsyncClient(base_url=world.http) as http:
        body = {"model": "r1-nano", "max_tokens": 9, "messages": ASK, "stream": True}
        page = (await http.post("/v1/messages", json=body)).text
    names = [line.removeprefix("event: ") for line in page.splitlines() if line.startswith("event: ")]
    delta = "content_block_delta"
    block = ["content_block_start", delta]
    assert names == [
        "message_start",
        *(*block, delta, "content_block_stop"),  # the second one is the signature
        *(*block, "content_block_stop"),
        *("message_delta", "message_stop"),
    ]


async def test_a_stop_sequence_is_named_and_the_token_limit_too(world: Any, client: Any, says: Any) -> None:
    await world.worker(says("a</think>one STOP two"))
    stop = ["never", "STOP"]
    done = await client.messages.create(model="r1-nano", max_tokens=50, messages=ASK, stop_sequences=stop)
    assert (done.content[-1].text, done.stop_reason, done.stop_sequence) == ("one ", "stop_sequence", "STOP")
    await world.workers[0].die()
    await world.until(lambda: not world.router.ranks.of("r1-nano"))
    await world.worker(says("a</think>b", finish=pb.FINISH_LENGTH))
    done = await client.messages.create(model="r1-nano", max_tokens=50, messages=ASK)
    assert done.stop_reason == "max_tokens"


async def test_earlier_thoughts_are_dropped_as_r1_was_trained(world: Any, client: Any, says: Any) -> None:
    worker = await world.worker(says("a</think>b"))
    earlier = await client.messages.create(model="r1-nano", max_tokens=50, messages=ASK)
    again = [*ASK, {"role": "assistant", "content": earlier.content}, *ASK]
    await client.messages.create(model="r1-nano", max_tokens=50, messages=again)
    plain = [*ASK, {"role": "assistant", "content": "b"}, *ASK]
    await client.messages.create(model="r1-nano", max_tokens=50, messages=plain)
    _, second, third = (worker.submits.get_nowait() for _ in range(3))
    assert second.prompt_token_ids == third.prompt_token_ids
    counted = await client.messages.count_tokens(model="r1-nano", messages=again)
    assert counted.input_tokens == len(second.prompt_token_ids)


@pytest.mark.parametrize(
    ("fields", "asked", "applied"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, 1024, 1024),
        ({"thinking": {"type": "disabled"}}, 0, 0),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, 1024, 1024),
    ],
)
async def test_thinking_is_budgeted(
    world: Any, client: Any, says: Any, fields: dict[str, Any], asked: int, applied: int
) -> None:
    await world.worker(says("b") if asked == 0 else says("a</think>b"))
    done = await client.messages.create(model="r1-nano", max_tokens=1900, messages=ASK, extra_body=fields)
    budget = done.usage.thinking_budget
    assert (budget["asked"], budget["applied"]) == (asked, min(applied, 1900 - 475 - 3))
    assert [block.type for block in done.content] == (["text"] if asked == 0 else ["thinking", "text"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 50}}, "thinking.budget_tokens"),
        ({"system": 5}, "system"),
        ({"system": [{"type": "image"}]}, "system"),
        ({"system": "s", "messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"stop_sequences": [""]}, "stop_sequences.0"),
        ({"tools": [{"name": "t"}]}, "tools"),
        ({"output_config": {"effort": "hardest"}}, "output_config.effort"),
        ({"n": 2}, "n"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages.0.content"),
        ({"stream": "yes"}, "stream"),
    ],
)
async def test_what_is_wrong_is_named_in_anthropics_terms(
    world: Any, client: Any, fields: dict[str, Any], param: str
) -> None:
    body = {"model": "r1-nano", "max_tokens": 50, "messages": ASK} | fields
    async with httpx.AsyncClient(base_url=world.http) as http:
        response = await http.post("/v1/messages", json=body)
    assert response.status_code == 400
    said = response.json()
    assert (said["type"], said["error"]["type"], said["error"]["param"]) == ("error", "invalid_request_error", param)


async def test_errors_are_the_sdks_own(world_of: Any, tmp_path: Any) -> None:
    tenants = tmp_path / "tenants.yaml"
    tenants.write_text(f"tenants: [{{name: acme, keys: [{hash_key('k')}]}}]")
    world = await world_of(tenants=tenants)

    async def ask(key: str, model: str = "r1-nano") -> None:
        async with anthropic.AsyncAnthropic(base_url=world.http, api_key=key, max_retries=0) as client:
            await client.messages.create(model=model, max_tokens=9, messages=ASK)

    with pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
        await ask("other")
    with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
        await ask("k", "claude")
    with pytest.raises(anthropic.InternalServerError, match="overloaded_error"):
        await ask("k")


async def test_an_error_after_the_first_event_is_an_event(world: Any, client: Any, ids: Any) -> None:
    deltas = [pb.Delta(token_ids=ids("a")), pb.Delta(finish=pb.FINISH_REJECTED, error="because")]
    await world.worker(lambda _: deltas)
    with pytest.raises(anthropic.APIStatusError, match="because"):
        async with client.messages.stream(model="r1-nano", max_tokens=9, messages=ASK) as stream:
            await stream.get_final_message()


async def test_models_are_listed_in_the_words_of_who_asks(world: Any, client: Any) -> None:
    found = [model.id async for model in client.models.list()]
    assert found[0] == "r1-nano"
    assert [model.id async for model in world.client.models.list()] == found
