"""OpenAI's objects as plain dicts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from r1_serve.router.call import Call, Event, Finished
from r1_serve.router.choice import Kind
from r1_serve.router.models import ServedModel
from r1_serve.router.usage import Usage


def usage_body(usage: Usage) -> dict[str, Any]:
    """OpenAI's counts, and DeepSeek's two for its clients."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "prompt_cache_hit_tokens": usage.cached_tokens,
        "prompt_cache_miss_tokens": usage.prompt_tokens - usage.cached_tokens,
    }


def completion_body(call: Call, events: Iterable[Event]) -> dict[str, Any]:
    """A chat.completion from all events of a call."""
    texts: dict[tuple[int, Kind], list[str]] = {}
    reasons: dict[int, str] = {}
    for event in events:
        if isinstance(event, Finished):
            reasons[event.index] = event.reason
        else:
            texts.setdefault((event.index, event.kind), []).append(event.text)

    def text(index: int, kind: Kind) -> str:
        return "".join(texts.get((index, kind), ()))

    def choice(index: int) -> dict[str, Any]:
        thinking = text(index, Kind.THINKING)
        message = {
            "role": "assistant",
            "content": text(index, Kind.ANSWER),
            "reasoning_content": thinking,
            "reasoning": thinking,
        }
        return {"index": index, "message": message, "logprobs": None, "finish_reason": reasons[index]}

    return {
        "id": f"chatcmpl-{call.request_id}",
        "object": "chat.completion",
        "created": call.created,
        "model": call.model.name,
        "choices": [choice(index) for index in range(call.request.n)],
        "usage": usage_body(call.usage()),
    }


def model_body(model: ServedModel, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "r1-serve",
        "root": model.name,
        "max_model_len": model.max_model_len,
    }
