"""The one validation of chat requests: OpenAI's fields, strictly typed, every complaint naming its field.

A field that would change the answer and is not supported is refused by name; one that cannot is let through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError
from r1_cluster.routing.budget import Effort

from r1_serve.errors import InvalidRequest
from r1_serve.router.request import MAX_CHOICES, MAX_STOP_LENGTH, MAX_STOP_STRINGS, ChatRequest, Message

# Bookkeeping of the client's or of OpenAI's own platform: no effect on the answer.
HARMLESS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)

# Not supported, but these values of theirs ask for nothing. None always does.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "verbosity": (),
    "web_search_options": (),
    "moderation": (),
}

# Of an earlier assistant message: accepted in any form and dropped, as R1 was trained, or accepted when empty.
_DROPPED_OF_MESSAGE = frozenset({"reasoning_content", "reasoning", "name"})
_EMPTY_OF_MESSAGE = frozenset({"tool_calls", "function_call", "refusal", "audio", "annotations", "prefix"})


def _fault(text: str) -> PydanticCustomError:
    return PydanticCustomError("r1", "{text}", {"text": text})


def _text_of(content: Any) -> Any:
    """Content parts joined to one text. Anything but text is refused by its type."""
    if not isinstance(content, list):
        return content
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            named = f"has type {kind!r}" if isinstance(kind, str) and kind != "text" else "has no text"
            raise _fault(f"part {number} {named}: only parts {{'type': 'text', 'text': ...}} are supported")
        texts.append(part["text"])
    return "".join(texts)


def _role(role: Any) -> Any:
    if role == "developer":
        return "system"
    if isinstance(role, str) and role not in ("system", "user", "assistant"):
        raise _fault(f"{role[:40]!r} is not supported: use system, developer, user or assistant")
    return role


def _known_message_fields(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    for name in _EMPTY_OF_MESSAGE:
        if message.get(name):
            raise _fault(f"{name} is not supported: leave it out")
    return {k: v for k, v in message.items() if k not in _DROPPED_OF_MESSAGE and k not in _EMPTY_OF_MESSAGE}


def _listed(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class _Message(_Strict):
    role: Annotated[str, BeforeValidator(_role)]
    content: Annotated[str | None, BeforeValidator(_text_of)] = None


class _StreamOptions(_Strict):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # vLLM's
    include_obfuscation: bool | None = None


class _Thinking(_Strict):
    """Anthropic's and DeepSeek's field. Enabled or adaptive without a number asks for nothing."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(default=None, ge=1, lt=1 << 31)
    display: str | None = None  # of Anthropic's platform: thinking is always shown here

    @property
    def tokens(self) -> int | None:
        return 0 if self.type == "disabled" else self.budget_tokens


def _effort(effort: Any) -> Any:
    """OpenAI's words; beyond high there is nothing more here."""
    if not isinstance(effort, str):
        return effort
    if effort in ("xhigh", "max"):
        return Effort.HIGH
    try:
        return Effort(effort)
    except ValueError:
        raise _fault(f"{effort[:40]!r} is no effort: use {', '.join(Effort)}") from None


def _ends_with_a_question(messages: list[_Message]) -> list[_Message]:
    for number, message in enumerate(messages):
        if message.content is None and message.role != "assistant":
            raise _fault(f"message {number} ({message.role}) has no content")
    if messages[-1].role == "assistant":
        raise _fault("the last message is the assistant's: continuing one is not supported, end with a user message")
    return messages


class ChatBody(_Strict):
    """OpenAI's request body as far as it is supported. ``stream`` and ``stream_options`` mean HTTP only."""

    model: str | None = None
    messages: Annotated[
        list[Annotated[_Message, BeforeValidator(_known_message_fields)]],
        Field(min_length=1),
        AfterValidator(_ends_with_a_question),
    ]
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, lt=1 << 31)
    min_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=2)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    min_tokens: int | None = Field(default=None, ge=0, lt=1 << 31)
    ignore_eos: bool | None = None
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    stop: Annotated[
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]], Field(max_length=MAX_STOP_STRINGS)
        ]
        | None,
        BeforeValidator(_listed),
    ] = None
    thinking_token_budget: int | None = Field(default=None, ge=-1, lt=1 << 31)
    reasoning_effort: Annotated[Effort | None, BeforeValidator(_effort)] = None
    thinking: _Thinking | None = None
    loop_guard: bool | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None

    def request(self) -> ChatRequest:
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise InvalidRequest(
                "max_completion_tokens and max_tokens mean the same here and differ: give one",
                field="max_completion_tokens",
            )
        budget, thinking = self.thinking_token_budget, self.thinking.tokens if self.thinking else None
        if budget is not None and thinking is not None and budget != thinking:
            raise InvalidRequest("thinking and thinking_token_budget differ: give one", field="thinking")
        return ChatRequest(
            model=self.model or "",
            messages=tuple(Message(m.role, m.content or "") for m in self.messages),
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=None if self.top_k is None else max(0, self.top_k),
            min_p=self.min_p,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            max_tokens=self.max_tokens or self.max_completion_tokens,
            min_tokens=self.min_tokens or 0,
            ignore_eos=self.ignore_eos is True,
            n=self.n or 1,
            stop=tuple(self.stop or ()),
            thinking_token_budget=thinking if budget is None else budget,
            reasoning_effort=self.reasoning_effort,
            loop_guard=self.loop_guard is not False,
        )


def check(body: Any) -> ChatBody:
    """Validate a decoded body. Raises InvalidRequest naming the first field at fault."""
    if not isinstance(body, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {_json_name(body)}")
    kept = {}
    for name, value in body.items():
        if name in NEUTRAL:
            if value is not None and value not in NEUTRAL[name]:
                raise InvalidRequest(f"{name} is not supported: leave it out", field=name)
        elif name not in HARMLESS:
            kept[name] = value
    try:
        return ChatBody.model_validate(kept)
    except ValidationError as e:
        fault = e.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part)[:64] for part in fault["loc"])
        text = "is not a known field: leave it out" if fault["type"] == "extra_forbidden" else fault["msg"]
        raise InvalidRequest(f"{field}: {text}", field=field) from e


def _json_name(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
