"""One streamed chat request as its client sees it, read from the router's chunks."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx


class ChatError(RuntimeError):
    """The router refused the request or broke it off; the message is its own."""


@dataclass(frozen=True)
class Chunk:
    """What one chunk brought. ``tokens``: completion tokens, in the last chunk alone, with the whole ``usage``."""

    thinking: str = ""
    answer: str = ""
    finish_reason: str | None = None
    tokens: int | None = None
    usage: Mapping[str, Any] | None = None


async def chat(client: httpx.AsyncClient, question: str, **options: Any) -> AsyncIterator[Chunk]:
    """Ask ``question`` greedily; ``options`` go into the request's body. Raises ChatError."""
    body = {
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **options,
    }
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            await response.aread()
            raise ChatError(f"{response.status_code}: {response.text[:200]}")
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                yield read(json.loads(line.removeprefix("data: ")))


async def open_loop(
    url: str, questions: Sequence[tuple[float, str]], ask: Callable[[httpx.AsyncClient, int], Coroutine[Any, Any, None]]
) -> float:
    """``ask(client, number)`` of each (when in seconds, question) at its time, whatever became of the others. Returns
    when it began, on the clock of ``time.perf_counter``."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with (
        httpx.AsyncClient(base_url=url, timeout=600, limits=limits, trust_env=False) as client,
        asyncio.TaskGroup() as group,
    ):
        started = time.perf_counter()
        for number, (at, _) in enumerate(questions):
            await asyncio.sleep(started + at - time.perf_counter())
            group.create_task(ask(client, number))
    return started


def read(event: dict[str, Any]) -> Chunk:
    """One event of the stream, of a single choice. Raises ChatError where it is an error."""
    if "error" in event:
        raise ChatError(event["error"]["message"])
    if not event["choices"]:
        return Chunk(tokens=event["usage"]["completion_tokens"], usage=event["usage"])
    choice = event["choices"][0]
    delta = choice["delta"]
    return Chunk(delta.get("reasoning") or "", delta.get("content") or "", choice["finish_reason"])
