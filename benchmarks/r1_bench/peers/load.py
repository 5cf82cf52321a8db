"""The load of one round: a list of prompts, drawn by ``streams`` clients, each over one connection it keeps.

Every server gets the same prompts greedily, so all do the same work. The client reads almost nothing of what comes: it
shares the machine with the server.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

# DeepSeek's, vLLM's and OpenAI's names of a delta's text; the first chunk of a stream has an empty one.
_TEXT = re.compile(rb'"(?:content|reasoning|reasoning_content)":\s?"[^"]')
_USAGE = re.compile(rb'"completion_tokens":\s?(\d+)')
_END = b"0\r\n\r\n"
MAX_TOKENS = 512
REQUEST_TIMEOUT_S = 120.0


class LoadError(RuntimeError):
    """The server did not answer as a streaming OpenAI server does; the message ends with what it said."""


@dataclass(frozen=True)
class Round:
    """One server under one load. ``tokens`` are all that were generated, ``tokens_per_s`` those while all streams had
    one to wait for: from the last stream's first token to the last request's start. What comes after depends on how
    long the one or two longest answers happen to be. TTFT and ITL are medians over requests, a request's ITL the mean
    of its own."""

    streams: int
    tokens: int
    tokens_per_s: float
    ttft_ms: float
    itl_ms: float


class Answer(NamedTuple):
    """When its request was sent, its first and its last token came, in seconds."""

    sent: float
    first: float
    last: float
    tokens: int

    @property
    def itl(self) -> float:
        return (self.last - self.first) / (self.tokens - 1)

    def within(self, begin: float, end: float) -> float:
        """How many of its tokens came between these."""
        first = float(begin <= self.first < end)
        if self.tokens < 2 or self.last <= self.first:
            return self.tokens * first
        return first + max(0.0, min(end, self.last) - max(begin, self.first)) / self.itl


class _Connection(asyncio.Protocol):
    """Keeps when the first text and the last bytes of the answer under way came."""

    def __init__(self) -> None:
        self.first = self.last = 0.0
        self._parts: list[bytes] = []
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes) -> asyncio.Future[bytes]:
        """A future of the whole answer."""
        self.first, self._parts = 0.0, []
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self.last = time.perf_counter()
        self._parts.append(data)
        if not self.first and _TEXT.search(data):
            self.first = self.last
        if data.endswith(_END) and self._answer is not None and not self._answer.done():
            self._answer.set_result(b"".join(self._parts))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            said = b"".join(self._parts)[-500:].decode(errors="replace")
            self._answer.set_exception(LoadError(f"the server closed the connection: {exc or 'no error'}; {said}"))


async def run(port: int, model: str, prompts: Sequence[str], streams: int) -> Round:
    """Send all ``prompts`` to 127.0.0.1:``port``, ``streams`` at a time. Raises LoadError."""
    queue = iter([_request(port, model, prompt) for prompt in prompts])
    answers: list[Answer] = []

    async def stream(requests: Iterator[bytes]) -> None:
        _, made = await asyncio.get_running_loop().create_connection(_Connection, "127.0.0.1", port)
        try:
            for request in requests:
                sent = time.perf_counter()
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    answer = await made.send(request)
                answers.append(Answer(sent, made.first, made.last, _tokens(answer)))
        finally:
            made.close()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(streams):
                group.create_task(stream(queue))
    except* LoadError as e:
        raise e.exceptions[0] from None
    except* TimeoutError:
        raise LoadError(f"a request took more than {REQUEST_TIMEOUT_S:g} s") from None
    return Round(
        streams,
        sum(answer.tokens for answer in answers),
        round(full_rate(answers, streams), 1),
        round(statistics.median(answer.first - answer.sent for answer in answers) * 1e3, 2),
        round(statistics.median(answer.itl for answer in answers if answer.tokens > 1) * 1e3, 3),
    )


def full_rate(answers: Sequence[Answer], streams: int) -> float:
    """Tokens a second from the last of the ``streams``' first tokens to the start of the last request; each answer's
    come evenly. Of fewer than twice as many answers as streams: of the whole round."""
    in_order = sorted(answers, key=lambda answer: answer.sent)
    begin, end = max(answer.first for answer in in_order[:streams]), in_order[-1].sent
    if len(answers) < 2 * streams or begin >= end:
        return sum(answer.tokens for answer in answers) / (max(a.last for a in answers) - in_order[0].sent)
    return sum(answer.within(begin, end) for answer in answers) / (end - begin)


def _request(port: int, model: str, prompt: str) -> bytes:
    body = json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body


def _tokens(answer: bytes) -> int:
    """Completion tokens by the server's own count. Raises LoadError where the answer is not a whole stream."""
    found = _USAGE.findall(answer)
    if not answer.startswith(b"HTTP/1.1 200") or b"[DONE]" not in answer or not found:
        raise LoadError(f"no whole stream came: {answer[:500].decode(errors='replace')}")
    return int(found[-1])
