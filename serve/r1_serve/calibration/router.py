"""A router as a calibration sees it: what is attached and how busy it is, and streams whose tokens are timed."""

from __future__ import annotations

import asyncio
import bisect
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from r1_serve.errors import R1Error

_ERROR = b'data: {"error"'
_TOKENS = re.compile(rb'"completion_tokens":(\d+)')
POLL_S = 0.02
IDLE_WITHIN_S = 30.0


class CalibrationFailed(R1Error):
    """The fleet cannot be measured as it is; the message says what to do."""

    reason = "calibration_failed"
    exit_code = 2


class Unreachable(CalibrationFailed):
    reason = "router_unreachable"


class KeyRefused(CalibrationFailed):
    reason = "key_refused"


class NothingToMeasure(CalibrationFailed):
    """No such model, no rank of it, or ranks of several plans."""

    reason = "nothing_to_measure"


class FleetBusy(CalibrationFailed):
    """Others ask it: what is measured would be of both."""

    reason = "fleet_busy"


class TooSmall(CalibrationFailed):
    """Context, cache or seats leave no room for batches that differ enough."""

    reason = "too_small"


@dataclass(frozen=True, slots=True)
class Fleet:
    """The ranks of ``model``: ``gangs`` of ``ranks`` in all, and what runs or waits on them. ``seats`` and
    ``kv_tokens``: of the smallest of them."""

    model: str
    plan: str
    max_model_len: int
    gangs: int
    ranks: int
    running: int
    waiting: int
    seats: int
    kv_tokens: int


class Stream:
    """One answer as it comes: ``times`` of its tokens, on the clock of ``time.perf_counter``."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def read(self, data: bytes) -> None:
        """Raises CalibrationFailed where the router broke the answer off."""
        if _ERROR in data:
            raise CalibrationFailed(f"the router broke an answer off: {data.decode(errors='replace')[:300]}")
        # By the router's count: an event may have the text of several tokens.
        if counts := _TOKENS.findall(data):
            self.times += [time.perf_counter()] * (int(counts[-1]) - len(self.times))

    def since(self, start: float) -> int:
        """Tokens that came after ``start``."""
        return len(self.times) - bisect.bisect_right(self.times, start)


class Router:
    """The router at ``url``. Every method raises CalibrationFailed where it does not answer, or refuses."""

    def __init__(self, client: httpx.AsyncClient, model: str | None) -> None:
        self._client, self._model = client, model

    async def fleet(self) -> Fleet:
        named = (await self._get("/v1/models")).json()["data"]
        known = {each["id"]: each for each in named}
        if not known:
            raise NothingToMeasure("the router serves no model: attach a fleet to it first")
        if self._model is not None and self._model not in known:
            raise NothingToMeasure(f"the router serves {', '.join(known)}, not {self._model}: give one of these")
        found = known[self._model or next(iter(known))]
        model = found["root"]
        ranks: dict[tuple[str, ...], dict[str, float]] = {}
        for family in text_string_to_metric_families((await self._get("/metrics")).text):
            for sample in family.samples:
                if sample.name.startswith("r1_rank_") and sample.labels.get("model") == model:
                    key = tuple(sample.labels[name] for name in ("plan", "pool", "gang", "rank"))
                    ranks.setdefault(key, {})[sample.name] = sample.value
        if not ranks:
            raise NothingToMeasure(f"no rank of {model} is attached to this router: start its fleet, see /ready")
        plans = {plan for plan, *_ in ranks}
        if len(plans) > 1:
            raise NothingToMeasure(f"plans {', '.join(sorted(plans))} serve {model}: measure them one at a time")
        return Fleet(
            model=model,
            plan=plans.pop(),
            max_model_len=found["max_model_len"],
            gangs=len({key[:3] for key in ranks}),
            ranks=len(ranks),
            running=int(sum(values.get("r1_rank_running", 0) for values in ranks.values())),
            waiting=int(sum(values.get("r1_rank_waiting", 0) for values in ranks.values())),
            seats=int(min(values.get("r1_rank_max_num_seqs", 0) for values in ranks.values())),
            kv_tokens=int(min(values.get("r1_rank_kv_tokens", 0) for values in ranks.values())),
        )

    async def idle(self, within_s: float = IDLE_WITHIN_S) -> bool:
        """Whether nothing runs, at the latest after ``within_s`` seconds: ranks tell their load now and then."""
        deadline = time.monotonic() + within_s
        while True:
            found = await self.fleet()
            if found.running + found.waiting == 0:
                return True
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(5 * POLL_S)

    async def prompt_tokens(self, prompt: str) -> int:
        """By the router's own count."""
        body = _body(prompt, 1, self._model)
        try:
            response = await self._client.post(
                "/v1/chat/completions", json={**body, "stream": False, "stream_options": None}
            )
        except httpx.HTTPError as e:
            raise _unreachable(self._client, e) from e
        if response.status_code != 200:
            raise _refused(response)
        return int(response.json()["usage"]["prompt_tokens"])

    async def first_token(self, prompt: str) -> float:
        """Seconds from the request to its first token."""
        stream, started = Stream(), time.perf_counter()
        await self._run(stream, _body(prompt, 8, self._model))  # the first ones may have no text
        if not stream.times:
            raise CalibrationFailed("an answer came without a token: ask it of this model by hand, see docs/api.md")
        return stream.times[0] - started

    async def together(
        self,
        prompts: Sequence[str],
        max_tokens: int,
        seconds: float,
        tokens: int,
        *,
        begun: Callable[[], None] = lambda: None,
    ) -> list[Stream]:
        """Answers to all ``prompts`` at once. They go on for ``seconds`` and ``tokens`` each after the last one has
        ``begun``, or until one comes near its end, and are then cut off."""
        streams = [Stream() for _ in prompts]
        bodies = [_body(prompt, max_tokens, self._model) for prompt in prompts]
        tasks = [asyncio.create_task(self._run(s, b)) for s, b in zip(streams, bodies, strict=True)]
        near_end = max_tokens * 7 // 10  # a router closes a thought at three quarters
        deadline = time.perf_counter() + IDLE_WITHIN_S + 10 * seconds
        all_run = False
        try:
            while True:
                await asyncio.sleep(POLL_S)
                begun_all, over = all(stream.times for stream in streams), [task for task in tasks if task.done()]
                for task in over:
                    task.result()
                if over and begun_all:
                    return streams
                now = time.perf_counter()
                if begun_all:
                    if not all_run:
                        all_run = True
                        begun()
                    start = max(stream.times[0] for stream in streams)
                    enough = now - start >= seconds and min(stream.since(start) for stream in streams) >= tokens
                    if enough or max(len(stream.times) for stream in streams) >= near_end:
                        return streams
                if over or now > deadline:
                    raise CalibrationFailed(
                        f"{len(prompts)} answers did not all run at once in time: the fleet holds fewer; give --most"
                    )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, stream: Stream, body: dict[str, Any]) -> None:
        try:
            async with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise _refused(response)
                async for data in response.aiter_raw():
                    stream.read(data)
        except httpx.HTTPError as e:
            raise _unreachable(self._client, e) from e

    async def _get(self, path: str) -> httpx.Response:
        try:
            response = await self._client.get(path)
        except httpx.HTTPError as e:
            raise _unreachable(self._client, e) from e
        if response.status_code != 200:
            raise _refused(response)
        return response


def _body(prompt: str, max_tokens: int, model: str | None) -> dict[str, Any]:
    """Greedy, and kept going to its last token."""
    named = {} if model is None else {"model": model}
    return {
        **named,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": max_tokens,
        "ignore_eos": True,  # min_tokens would do it as well, at a cost in each step of the engine
        "loop_guard": False,
        "stream": True,
        "stream_options": {"continuous_usage_stats": True},
    }


def _refused(response: httpx.Response) -> CalibrationFailed:
    try:
        said = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        said = f"HTTP {response.status_code}"
    if response.status_code in (401, 403):
        return KeyRefused(f"{said}: give --key, or R1_API_KEY, of a tenant of this router")
    return CalibrationFailed(f"the router refuses {response.request.url.path}: {said}")


def _unreachable(client: httpx.AsyncClient, error: httpx.HTTPError) -> Unreachable:
    said = str(error) or type(error).__name__
    return Unreachable(f"no router answers at {client.base_url} ({said}): start it, or give its HTTP address")
