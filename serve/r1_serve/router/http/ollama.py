"""Ollama's API: /api/chat, generate, tags, show and version. Lines of JSON, thinking beside the answer."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import orjson
from r1_cluster.routing.budget import Effort
from starlette.requests import Request
from starlette.responses import Response

from r1_serve.errors import InvalidRequest, R1Error
from r1_serve.router.call import Call, Event, Finished
from r1_serve.router.choice import Kind
from r1_serve.router.http.body import read_json
from r1_serve.router.http.chat import respond
from r1_serve.router.http.dialect import Dialect
from r1_serve.router.http.errors import refusal
from r1_serve.router.http.shape import budget_body
from r1_serve.router.http.translate import checked, known, unsupported
from r1_serve.router.models import ServedModel
from r1_serve.router.request import ChatRequest
from r1_serve.router.service import Service

_SAME = ("temperature", "top_k", "top_p", "min_p", "seed", "presence_penalty", "frequency_penalty", "stop")
_RENAMED = {"num_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}
# Of the machine Ollama would run on, or off by these values.
_LOADING = (
    *("numa", "num_ctx", "num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "logits_all", "vocab_only"),
    *("use_mmap", "use_mlock", "embedding_only", "num_thread", "num_keep", "repeat_last_n", "penalize_newline"),
    *("mirostat_tau", "mirostat_eta"),
)
_NEUTRAL_OPTIONS: dict[str, tuple[Any, ...]] = {"mirostat": (0,), "typical_p": (1,), "tfs_z": (1,)}
_OPTIONS = {*_SAME, *_RENAMED, *_LOADING, *_NEUTRAL_OPTIONS}
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "format": ("",),
    "images": ([],),
    "suffix": ("",),
    "template": ("",),
    "raw": (False,),
    "context": ([],),
    "logprobs": (False,),
    "top_logprobs": (0,),
}
_BOTH = {*_NEUTRAL, "model", "stream", "think", "options", "keep_alive"}
_MESSAGE = ("thinking", "images", "tool_calls", "tool_name")
_NAMES = {ours: f"options.{theirs}" for theirs, ours in _RENAMED.items()} | {n: f"options.{n}" for n in _SAME}
_NAMES |= {"reasoning_effort": "think"}
_LEVELS = {True: None, False: Effort.NONE}


async def chat(request: Request) -> Response:
    """Raises R1Error."""

    def read(body: Any) -> tuple[ChatRequest, Dialect, bool]:
        given = known(body, {*_BOTH, "messages"})
        said = given.get("messages")
        if not said:
            raise InvalidRequest("messages: give at least one; a model needs no loading here", field="messages")
        said = [_message(message) for message in said] if isinstance(said, list) else said
        return _checked(given, said), CHAT, _streamed(given)

    return await respond(request, read)


async def generate(request: Request) -> Response:
    """Raises R1Error."""

    def read(body: Any) -> tuple[ChatRequest, Dialect, bool]:
        given = known(body, {*_BOTH, "prompt", "system"})
        if not given.get("prompt"):
            raise InvalidRequest("prompt: is required; a model needs no loading here", field="prompt")
        said = [{"role": "user", "content": given["prompt"]}]
        if given.get("system"):
            said.insert(0, {"role": "system", "content": given["system"]})
        return _checked(given, said), GENERATE, _streamed(given)

    return await respond(request, read)


async def tags(request: Request) -> Response:
    service: Service = request.app.state.service
    named = [
        _described(model, name) for model in service.catalog.models.values() for name in (model.name, *model.aliases)
    ]
    return _json({"models": named})


async def show(request: Request) -> Response:
    """Raises R1Error."""
    service: Service = request.app.state.service
    body = await read_json(request, service.settings.max_body_bytes, service.settings.body_s)
    given = known(body, ("model", "name", "verbose"))
    model = service.catalog.resolve(_bare(str(given.get("model") or given.get("name") or "")))
    described = _described(model, model.name)
    info = {"general.architecture": "deepseek", "deepseek.context_length": model.max_model_len}
    able = ["completion", *(["thinking"] if model.closing_ids else [])]
    return _json(
        {
            "details": described["details"],
            "model_info": info,
            "capabilities": able,
            "modified_at": described["modified_at"],
        }
    )


async def about(request: Request) -> Response:
    return _json({"version": version("r1-serve")})


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


def _described(model: ServedModel, name: str) -> dict[str, Any]:
    details = {"format": "safetensors", "family": "deepseek", "families": ["deepseek"], "parent_model": ""}
    details |= {"parameter_size": "", "quantization_level": ""}
    modified = _time(model.created)
    return {"name": name, "model": name, "modified_at": modified, "size": 0, "digest": "", "details": details}


def _bare(name: str) -> str:
    """Ollama names a model's newest version by a tag."""
    return name.removesuffix(":latest")


def _message(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    for name in ("images", "tool_calls"):
        if message.get(name):
            raise InvalidRequest(f"messages: {name} are not supported: leave them out", field="messages")
    return {name: value for name, value in message.items() if name not in _MESSAGE}


def _streamed(given: dict[str, Any]) -> bool:
    streamed = given.get("stream", True)
    if not isinstance(streamed, bool):
        raise InvalidRequest("stream: give true or false", field="stream")
    return streamed


def _checked(given: dict[str, Any], said: Any) -> ChatRequest:
    unsupported(given, _NEUTRAL)
    options = known(given.get("options", {}), _OPTIONS, "options")
    unsupported(options, _NEUTRAL_OPTIONS)
    ours: dict[str, Any] = {name: options[name] for name in _SAME if name in options}
    ours |= {_RENAMED[name]: options[name] for name in _RENAMED if name in options}
    if ours.get("max_tokens") in (-1, -2):  # without end; until the context is full
        del ours["max_tokens"]
    model, think = given.get("model"), given.get("think")
    ours |= {"model": _bare(model) if isinstance(model, str) else model, "messages": said}
    if think is not None:
        ours["reasoning_effort"] = _LEVELS[think] if isinstance(think, bool) else think
    return checked(ours, _NAMES)


def _time(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat().replace("+00:00", "Z")


class Lines:
    """One JSON object a line. ``part`` writes a piece of text as this endpoint has it."""

    media_type = b"application/x-ndjson"
    keep_alive = b"\n"
    nothing = b'"message":{"role":"assistant","content":""},'

    def __init__(self, call: Call) -> None:
        self._call = call
        self._reason = "stop"
        self._head = b'{"model":%b,"created_at":' % orjson.dumps(call.model.name)

    def opening(self) -> bytes:
        return b""

    def text(self, index: int, kind: Kind, text: str) -> bytes:
        return self._now() + self.part(kind, orjson.dumps(text)) + b',"done":false}\n'

    def part(self, kind: Kind, text: bytes) -> bytes:
        if kind is Kind.THINKING:
            return b'"message":{"role":"assistant","content":"","thinking":' + text + b"}"
        return b'"message":{"role":"assistant","content":' + text + b"}"

    def event(self, event: Event) -> bytes:
        if isinstance(event, Finished):
            self._reason = event.reason
            return b""
        return self.text(event.index, event.kind, event.text)

    def closing(self) -> bytes:
        return self._now() + self.nothing + orjson.dumps({"done": True, **ending(self._call, self._reason)})[1:] + b"\n"

    def error(self, error: R1Error) -> bytes:
        return orjson.dumps(error_body(error)) + b"\n"

    def _now(self) -> bytes:
        return self._head + b'"%b",' % datetime.now(UTC).isoformat().replace("+00:00", "Z").encode()


class Generated(Lines):
    nothing = b'"response":"",'

    def part(self, kind: Kind, text: bytes) -> bytes:
        return b'"response":"","thinking":' + text if kind is Kind.THINKING else b'"response":' + text


def ending(call: Call, reason: str) -> dict[str, Any]:
    """What the last line says. Times in nanoseconds: the prompt's until the first token, the rest the generation's."""
    usage = call.usage()
    first = usage.time_to_first_token_seconds
    return {
        "done_reason": reason,
        "total_duration": _nanoseconds(usage.total_seconds),
        "load_duration": 0,
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(first),
        "eval_count": usage.completion_tokens,
        "eval_duration": _nanoseconds(usage.total_seconds - first),
        **budget_body(usage),
    }


def _nanoseconds(seconds: float) -> int:
    return round(max(0.0, seconds) * 1e9)


def _collected(call: Call, events: Iterable[Event]) -> tuple[str, str, dict[str, Any]]:
    texts, reason = {Kind.THINKING: "", Kind.ANSWER: ""}, "stop"
    for event in events:
        if isinstance(event, Finished):
            reason = event.reason
        else:
            texts[event.kind] += event.text
    common = {"model": call.model.name, "created_at": _time(call.created), "done": True, **ending(call, reason)}
    return texts[Kind.THINKING], texts[Kind.ANSWER], common


def whole_chat(call: Call, events: Iterable[Event]) -> dict[str, Any]:
    thinking, answer, common = _collected(call, events)
    thought = {"thinking": thinking} if thinking else {}
    return {**common, "message": {"role": "assistant", "content": answer, **thought}}


def whole_generate(call: Call, events: Iterable[Event]) -> dict[str, Any]:
    thinking, answer, common = _collected(call, events)
    return {**common, "response": answer, **({"thinking": thinking} if thinking else {})}


def error_body(error: R1Error) -> dict[str, Any]:
    return {"error": error.message, "code": error.reason}


def error_response(error: R1Error) -> Response:
    return refusal(error_body(error), error)


CHAT = Dialect(Lines, whole_chat, error_response)
GENERATE = Dialect(Generated, whole_generate, error_response)
