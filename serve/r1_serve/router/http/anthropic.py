"""Anthropic's Messages API: POST /v1/messages and /v1/messages/count_tokens.

R1 thinks whether or not it is asked to, so there is a thinking block unless ``thinking`` is disabled. A block's
signature is the request's id; blocks that come back in the history are dropped, as R1 was trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from r1_serve.errors import InvalidRequest, R1Error
from r1_serve.router.call import Call, Event, Finished
from r1_serve.router.choice import Kind
from r1_serve.router.http.body import read_json
from r1_serve.router.http.chat import key_of, respond
from r1_serve.router.http.dialect import Dialect
from r1_serve.router.http.errors import refusal
from r1_serve.router.http.shape import budget_body
from r1_serve.router.http.sse import EVENTS
from r1_serve.router.http.translate import checked, known, unsupported
from r1_serve.router.request import ChatRequest
from r1_serve.router.service import Service

_SAME = ("model", "temperature", "top_p", "top_k", "thinking", "max_tokens")
_HARMLESS = ("metadata", "service_tier", "inference_geo", "cache_control", "user_profile_id")
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ({"type": "none"}, {"type": "auto"}),
    "mcp_servers": ([],),
    "container": (),
    "context_management": (),
}
_KNOWN = {*_SAME, *_HARMLESS, *_NEUTRAL, "messages", "system", "stop_sequences", "stream", "output_config"}
_THOUGHTS = ("thinking", "redacted_thinking")
_STOPS = {"length": "max_tokens"}


async def messages(request: Request) -> Response:
    """Raises R1Error."""
    return await respond(request, _read)


async def count_tokens(request: Request) -> Response:
    """Tokens of the prompt as it would be sent. Raises R1Error."""
    service: Service = request.app.state.service
    body = await read_json(request, service.settings.max_body_bytes, service.settings.body_s)
    count = await service.count(translated(body, needs_max_tokens=False), key_of(request))
    return Response(orjson.dumps({"input_tokens": count}), media_type="application/json")


def _read(body: Any) -> tuple[ChatRequest, Dialect, bool]:
    chat = translated(body)
    streamed = body.get("stream") or False
    if not isinstance(streamed, bool):
        raise InvalidRequest("stream: give true or false", field="stream")
    return chat, DIALECT, streamed


def translated(body: Any, *, needs_max_tokens: bool = True) -> ChatRequest:
    """A Messages body as a request. Raises InvalidRequest."""
    given = known(body, _KNOWN)
    unsupported(given, _NEUTRAL)
    for name in ("model", "messages", *(["max_tokens"] if needs_max_tokens else [])):
        if name not in given:
            raise InvalidRequest(f"{name}: is required", field=name)
    config = known(given.get("output_config", {}), ("effort", "format"), "output_config")
    unsupported(config, {"format": ()})
    thinking, most = given.get("thinking"), given.get("max_tokens")
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    if isinstance(budget, int) and isinstance(most, int) and budget >= most:
        raise InvalidRequest(
            "thinking.budget_tokens: must be less than max_tokens, which holds both", field="thinking.budget_tokens"
        )
    said = given["messages"]
    said = [_without_thoughts(message) for message in said] if isinstance(said, list) else said
    before = [{"role": "system", "content": given["system"]}] if given.get("system") else []
    ours = {name: given[name] for name in _SAME if name in given}
    ours["messages"] = [*before, *said] if isinstance(said, list) else said
    ours["stop"] = given.get("stop_sequences", [])
    ours["reasoning_effort"] = config.get("effort")
    names = {"stop": "stop_sequences", "reasoning_effort": "output_config.effort"}
    return checked(ours, names, shift=len(before))


def _without_thoughts(message: Any) -> Any:
    """An assistant's earlier thoughts have no place in R1's prompt."""
    if not isinstance(message, dict) or message.get("role") != "assistant":
        return message
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": [b for b in content if not (isinstance(b, dict) and b.get("type") in _THOUGHTS)]}


def usage_body(call: Call) -> dict[str, Any]:
    """Anthropic counts cached tokens beside the input, not in it."""
    usage = call.usage()
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        **budget_body(usage),
    }


def _stop(call: Call, end: Finished) -> dict[str, Any]:
    met = call.generations[end.index].choice.stop_string
    return {"stop_reason": "stop_sequence" if met else _STOPS.get(end.reason, "end_turn"), "stop_sequence": met}


def _message(call: Call, content: list[dict[str, Any]], stop: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"msg_{call.request_id}",
        "type": "message",
        "role": "assistant",
        "model": call.model.name,
        "content": content,
        **stop,
        "usage": usage_body(call),
    }


def whole(call: Call, events: Iterable[Event]) -> dict[str, Any]:
    texts = {Kind.THINKING: "", Kind.ANSWER: ""}
    stop: dict[str, Any] = {}
    for event in events:
        if isinstance(event, Finished):
            stop = _stop(call, event)
        else:
            texts[event.kind] += event.text
    content: list[dict[str, Any]] = []
    if texts[Kind.THINKING]:
        content.append({"type": "thinking", "thinking": texts[Kind.THINKING], "signature": call.request_id})
    content.append({"type": "text", "text": texts[Kind.ANSWER], "citations": None})
    return _message(call, content, stop)


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


class Blocks:
    """A message's content blocks as server-sent events: the thought, then the answer."""

    media_type = EVENTS
    keep_alive = _event("ping")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._index = -1
        self._kind: Kind | None = None  # of the open block
        self._head = b""
        self._stop: dict[str, Any] = {}

    def opening(self) -> bytes:
        message = _message(self._call, [], {"stop_reason": None, "stop_sequence": None})
        message["usage"]["output_tokens"] = 0
        return _event("message_start", message=message)

    def text(self, index: int, kind: Kind, text: str) -> bytes:
        begun = b"" if kind is self._kind else self._close() + self._open(kind)
        return begun + self._head + orjson.dumps(text) + b"}}\n\n"

    def event(self, event: Event) -> bytes:
        if not isinstance(event, Finished):
            return self.text(event.index, event.kind, event.text)
        self._stop = _stop(self._call, event)
        begun = b"" if self._kind is Kind.ANSWER else self._close() + self._open(Kind.ANSWER)
        return begun + self._close()

    def closing(self) -> bytes:
        return _event("message_delta", delta=self._stop, usage=usage_body(self._call)) + _event("message_stop")

    def error(self, error: R1Error) -> bytes:
        return _event("error", **error_fields(error))

    def _open(self, kind: Kind) -> bytes:
        self._index += 1
        self._kind = kind
        thinks = kind is Kind.THINKING
        block = {"type": "thinking", "thinking": "", "signature": ""} if thinks else {"type": "text", "text": ""}
        delta, name = (b"thinking_delta", b"thinking") if thinks else (b"text_delta", b"text")
        self._head = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":'
            % (self._index, delta, name)
        )
        return _event("content_block_start", index=self._index, content_block=block)

    def _close(self) -> bytes:
        kind, self._kind = self._kind, None
        if kind is None:
            return b""
        signed = b""
        if kind is Kind.THINKING:
            delta = {"type": "signature_delta", "signature": self._call.request_id}
            signed = _event("content_block_delta", index=self._index, delta=delta)
        return signed + _event("content_block_stop", index=self._index)


_TYPES = {401: "authentication_error", 404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error"}
_TYPES |= {503: "overloaded_error", 504: "timeout_error"}


def error_fields(error: R1Error) -> dict[str, Any]:
    """Anthropic's ``error`` object; ours has the stable reason beside it."""
    kind = _TYPES.get(error.http_status, "invalid_request_error" if error.http_status < 500 else "api_error")
    return {"error": {"type": kind, "message": error.message, "code": error.reason, "param": error.field}}


def error_response(error: R1Error) -> Response:
    return refusal({"type": "error", **error_fields(error)}, error)


def model_bodies(models: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The list of models for a client that sends Anthropic's header."""
    data = [
        {"type": "model", "id": m["id"], "display_name": m["id"], "created_at": "1970-01-01T00:00:00Z"} for m in models
    ]
    ids = [m["id"] for m in models]
    return {"data": data, "has_more": False, "first_id": ids[0], "last_id": ids[-1]}


DIALECT = Dialect(Blocks, whole, error_response)
