"""Events of a call as OpenAI's chat.completion.chunk, in server-sent events."""

from __future__ import annotations

from typing import Any

import orjson

from r1_serve.errors import R1Error
from r1_serve.router.call import Call, Event, Finished
from r1_serve.router.choice import Kind
from r1_serve.router.http.errors import error_body
from r1_serve.router.http.shape import finish_body, usage_body

DONE = b"data: [DONE]\n\n"
_TEXT_END = b'},"finish_reason":null}]'
_END = b"}\n\n"
EVENTS = b"text/event-stream; charset=utf-8"


def data(value: Any) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


class Chunks:
    """Formats one call. What is the same in every chunk is written once."""

    media_type = EVENTS
    keep_alive = b": keep-alive\n\n"

    def __init__(self, call: Call, *, include_usage: bool = False, continuous_usage: bool = False) -> None:
        """``continuous_usage``: chunks with text carry the counts up to that text."""
        self._call = call
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage
        self._common = {
            "id": f"chatcmpl-{call.request_id}",
            "object": "chat.completion.chunk",
            "created": call.created,
            "model": call.model.name,
        }
        self._head = b"data: " + orjson.dumps(self._common)[:-1] + b',"choices":[{"index":%d,"delta":'
        begun = [self._head % index for index in range(call.request.n)]
        self._begun = [(head + b'{"reasoning_content":', head + b'{"content":') for head in begun]

    def opening(self) -> bytes:
        """The role of each choice."""
        delta = b'{"role":"assistant","content":""}'
        return b"".join(self._chunk(index, delta, b"null") for index in range(self._call.request.n))

    def event(self, event: Event) -> bytes:
        if isinstance(event, Finished):
            end = finish_body(event)
            reason = b'"%b","thinking_finish_reason":"%b"'
            return self._chunk(event.index, b"{}", reason % tuple(text.encode() for text in end.values()))
        return self.text(event.index, event.kind, event.text)

    def text(self, index: int, kind: Kind, text: str) -> bytes:
        written = orjson.dumps(text)
        thinking, answer = self._begun[index]
        if kind is Kind.ANSWER:
            return b"".join((answer, written, _TEXT_END, self._so_far(), _END))
        # DeepSeek's clients read the first, vLLM's and newer ones the second.
        return b"".join((thinking, written, b',"reasoning":', written, _TEXT_END, self._so_far(), _END))

    def _so_far(self) -> bytes:
        """The counts alone, for it is on the token path: no Usage is made."""
        if not self._continuous_usage:
            return b""
        choices = [generation.choice for generation in self._call.generations]
        prompt, completion = self._call.prompt_tokens, sum(choice.completion_tokens for choice in choices)
        counts = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "completion_tokens_details": {"reasoning_tokens": sum(choice.reasoning_tokens for choice in choices)},
        }
        return b',"usage":' + orjson.dumps(counts)

    def closing(self) -> bytes:
        if not self._include_usage:
            return DONE
        return data({**self._common, "choices": [], "usage": usage_body(self._call.usage())}) + DONE

    def error(self, error: R1Error) -> bytes:
        """Instead of what is missing; no [DONE] follows, the stream is not complete."""
        return data(error_body(error))

    def _chunk(self, index: int, delta: bytes, finish: bytes) -> bytes:
        return self._head % index + delta + b',"finish_reason":' + finish + b"}]}\n\n"
