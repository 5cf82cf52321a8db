"""What a benchmark's client makes of the router's stream."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
from r1_bench.chat import ChatError, Chunk, chat, open_loop

THINKING = {"choices": [{"index": 0, "delta": {"reasoning_content": "1", "reasoning": "1"}, "finish_reason": None}]}
ANSWER = {"choices": [{"index": 0, "delta": {"content": "2"}, "finish_reason": None}]}
END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
COUNTS = {"completion_tokens": 3}
USAGE = {"choices": [], "usage": COUNTS}
ERROR = {"error": {"message": "the rank is gone"}}


async def asked(*events: Any, status: int = 200) -> list[Chunk]:
    lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + ": keep-alive\n\ndata: [DONE]\n\n"
    transport = httpx.MockTransport(lambda request: httpx.Response(status, text=lines))
    async with httpx.AsyncClient(transport=transport, base_url="http://router") as client:
        return [chunk async for chunk in chat(client, "1 + 1?")]


async def test_thinking_answer_end_and_tokens_come_apart() -> None:
    assert await asked(THINKING, ANSWER, END, USAGE) == [
        Chunk(thinking="1"),
        Chunk(answer="2"),
        Chunk(finish_reason="stop"),
        Chunk(tokens=3, usage=COUNTS),
    ]


async def test_an_error_within_the_stream_is_raised_in_the_routers_words() -> None:
    with pytest.raises(ChatError, match="the rank is gone"):
        await asked(THINKING, ERROR)


async def test_a_refusal_is_raised_with_its_status() -> None:
    with pytest.raises(ChatError, match=r"^503: .*the rank is gone"):
        await asked(ERROR, status=503)


async def test_an_open_loop_asks_each_at_its_time_whatever_became_of_the_others() -> None:
    asked_at: dict[int, float] = {}
    first_may_end = asyncio.Event()

    async def ask(_: httpx.AsyncClient, number: int) -> None:
        asked_at[number] = time.perf_counter()
        if number == 0:
            await first_may_end.wait()
        else:
            first_may_end.set()

    began = await open_loop("http://router", [(0.0, "1 + 1?"), (0.05, "2 + 2?")], ask)
    assert list(asked_at) == [0, 1]
    assert asked_at[1] - began >= 0.05
