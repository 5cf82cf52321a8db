"""Ollama's API through Ollama's own client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import ollama
import pytest
from r1_serve.protos import fleet_pb2 as pb

ASK: list[Any] = [{"role": "user", "content": "x"}]
TEXT = "1 + 1\n</think>\n\nIt is 2.<｜end▁of▁sentence｜>"


@pytest.fixture
async def client(world: Any) -> AsyncIterator[ollama.AsyncClient]:
    made = ollama.AsyncClient(host=world.http)
    yield made
    await made._client.aclose()


async def test_a_chat_has_thinking_beside_the_answer_and_counts(world: Any, client: Any, says: Any, ids: Any) -> None:
    worker = await world.worker(says(TEXT))
    done = await client.chat("r1-nano:latest", ASK, options={"temperature": 0, "num_predict": 90, "num_ctx": 4096})
    assert (done.message.role, done.message.content, done.message.thinking) == ("assistant", "It is 2.", "1 + 1")
    assert (done.model, done.done, done.done_reason) == ("r1-nano", True, "stop")
    submit = worker.submits.get_nowait()
    assert (done.prompt_eval_count, done.eval_count) == (len(submit.prompt_token_ids), len(ids(TEXT)))
    assert done.total_duration >= done.prompt_eval_duration > 0
    assert (submit.sampling.temperature, submit.sampling.max_tokens) == (0, 90)


async def test_a_streamed_chat_adds_up_to_the_same(world: Any, client: Any, says: Any) -> None:
    await world.worker(says(TEXT))
    parts = [part async for part in await client.chat("r1-nano", ASK, stream=True)]
    assert "".join(part.message.thinking or "" for part in parts) == "1 + 1"
    assert "".join(part.message.content or "" for part in parts) == "It is 2."
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count > 0


async def test_streaming_is_the_default_and_each_line_is_json(world: Any, says: Any) -> None:
    await world.worker(says("a</think>b"))
    async with httpx.AsyncClient(base_url=world.http) as http:
        response = await http.post("/api/chat", json={"model": "r1-nano", "messages": ASK})
    assert response.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert [line["message"] for line in lines] == [
        {"role": "assistant", "content": "", "thinking": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "assistant", "content": ""},
    ]
    assert lines[0]["created_at"].endswith("Z")


@pytest.mark.parametrize("stream", [False, True])
async def test_generate_has_a_response_and_a_system_prompt(world: Any, client: Any, says: Any, stream: bool) -> None:
    worker = await world.worker(says(TEXT))
    got = await client.generate("r1-nano", "1 + 1?", system="Be brief.", stream=stream)
    parts = [part async for part in got] if stream else [got]
    assert "".join(part.response or "" for part in parts) == "It is 2."
    assert "".join(part.thinking or "" for part in parts) == "1 + 1"
    assert parts[-1].done_reason == "stop"
    told = worker.submits.get_nowait().prompt_token_ids
    await world.client.chat.completions.create(
        model="r1-nano",
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}],
    )
    assert worker.submits.get_nowait().prompt_token_ids == told


@pytest.mark.parametrize(("think", "asked"), [(False, 0), ("low", 1024), ("high", -1), (True, None)])
async def test_think_is_a_switch_or_a_level(world: Any, says: Any, think: Any, asked: int | None) -> None:
    await world.worker(says("b") if asked == 0 else says("a</think>b"))
    async with httpx.AsyncClient(base_url=world.http) as http:
        body = {"model": "r1-nano", "messages": ASK, "think": think, "stream": False}
        said = (await http.post("/api/chat", json=body)).json()
    assert said["thinking_budget"]["asked"] == asked
    assert ("thinking" in said["message"]) == (asked != 0)


@pytest.mark.parametrize(
    ("path", "fields", "said"),
    [
        ("/api/chat", {"options": {"temperature": 9}}, "options.temperature: "),
        ("/api/chat", {"options": {"num_predict": 0}}, "options.num_predict: "),
        ("/api/chat", {"options": {"mirostat": 2}}, "mirostat is not supported"),
        ("/api/chat", {"options": {"bogus": 2}}, "options.bogus: is not a known field"),
        ("/api/chat", {"think": "hardest"}, "think: 'hardest' is no effort"),
        ("/api/chat", {"tools": [{}]}, "tools is not supported"),
        ("/api/chat", {"format": "json"}, "format is not supported"),
        ("/api/chat", {"messages": []}, "messages: give at least one"),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "images are not"),
        ("/api/chat", {"stream": 1}, "stream: give true or false"),
        ("/api/generate", {"prompt": ""}, "prompt: is required"),
        ("/api/generate", {"prompt": "x", "raw": True}, "raw is not supported"),
    ],
)
async def test_what_is_wrong_is_named_in_ollamas_terms(
    world: Any, path: str, fields: dict[str, Any], said: str
) -> None:
    body = ({"messages": ASK} if path == "/api/chat" else {}) | {"model": "r1-nano"} | fields
    async with httpx.AsyncClient(base_url=world.http) as http:
        response = await http.post(path, json=body)
    assert response.status_code == 400
    assert said in response.json()["error"]


async def test_errors_are_the_clients_own_and_in_a_stream_a_line(world: Any, client: Any, ids: Any) -> None:
    with pytest.raises(ollama.ResponseError, match="is not served") as fault:
        await client.chat("llama", ASK)
    assert fault.value.status_code == 404
    deltas = [pb.Delta(token_ids=ids("a")), pb.Delta(finish=pb.FINISH_REJECTED, error="because")]
    await world.worker(lambda _: deltas)
    with pytest.raises(ollama.ResponseError, match="because"):
        async for _ in await client.chat("r1-nano", ASK, stream=True):
            pass


async def test_models_and_what_they_can_are_listed(world: Any, client: Any) -> None:
    assert [model.model for model in (await client.list()).models] == ["r1-nano", "deepseek-r1", "deepseek-reasoner"]
    assert "thinking" in (await client.show("deepseek-r1:latest")).capabilities
    async with httpx.AsyncClient(base_url=world.http) as http:
        assert (await http.get("/api/version")).json()["version"]
        assert "error" in (await http.get("/api/nothing")).json()
