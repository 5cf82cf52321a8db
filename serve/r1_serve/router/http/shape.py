"""OpenAI's objects as plain dicts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from r1_serve.router.call import Call, Event, Finished
from r1_serve.router.choice import Kind
from r1_serve.router.models import ServedModel
from r1_serve.router.usage import Usage


def usage_body(usage: Usage) -> dict[str, Any]:
    """OpenAI's counts, DeepSeek's two for its clients, and what became of the thinking budget."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "prompt_cache_hit_tokens": usage.cached_tokens,
        "prompt_cache_miss_tokens": usage.prompt_tokens - usage.cached_tokens,
        **budget_body(usage),
    }


def budget_body(usage: Usage) -> dict[str, Any]:
    """An extension of every dialect's usage: asked, applied, used; empty where there was no budget at all."""
    budget = usage.thinking_budget
    if budget.asked is None and budget.applied is None:
        return {}
    effort = {"effort": budget.effort} if budget.effort else {}
    used = usage.longest_thought_tokens
    return {"thinking_budget": {"asked": budget.asked, "applied": budget.applied, "used": used, **effort}}


def finish_body(end: Finished) -> dict[str, Any]:
    """How a choice ended; the second is an extension: complete, empty, unterminated, none, budget, loop."""
    return {"finish_reason": end.reason, "thinking_finish_reason": end.thought.value}


def completion_body(call: Call, events: Iterable[Event]) -> dict[str, Any]:
    """A chat.completion from all events of a call."""
    texts: dict[tuple[int, Kind], list[str]] = {}
    ends: dict[int, Finished] = {}
    for event in events:
        if isinstance(event, Finished):
            ends[event.index] = event
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
        return {"index": index, "message": message, "logprobs": None, **finish_body(ends[index])}

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
