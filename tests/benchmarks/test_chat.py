"""What a benchmark's client makes of the router's stream."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from r1_bench.chat import ChatError, Chunk, chat

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
