"""Clients behind a load balancer: they ask whichever router is ready, and ask again where one turns them away."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import cycle
from typing import Any, Self

import httpx

PROBE_S = 0.2
TURNED_AWAY = "router_stopping"
TRIES = 200
MAX_TOKENS = 900


class Balancer:
    """Probes ``/ready`` of each router, as a Kubernetes Service does, and hands out those that are."""

    def __init__(self, urls: Sequence[str], transport: httpx.AsyncBaseTransport | None = None) -> None:
        """``transport`` is a test's."""
        self.urls = urls
        self._transport = transport
        self.up = [False] * len(urls)
        self._turn = 0

    async def __aenter__(self) -> Self:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self.http = httpx.AsyncClient(timeout=600, limits=limits, trust_env=False, transport=self._transport)
        self._probing = [asyncio.create_task(self._probe(index)) for index in range(len(self.urls))]
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._probing:
            task.cancel()
        await asyncio.gather(*self._probing, return_exceptions=True)
        await self.http.aclose()

    async def pick(self) -> str:
        """The next router that is ready, once one is."""
        while True:
            for _ in self.urls:
                self._turn = (self._turn + 1) % len(self.urls)
                if self.up[self._turn]:
                    return self.urls[self._turn]
            await asyncio.sleep(PROBE_S / 4)

    async def _probe(self, index: int) -> None:
        while True:
            try:
                response = await self.http.get(f"{self.urls[index]}/ready", timeout=5)
                self.up[index] = response.status_code == 200
            except httpx.HTTPError:
                self.up[index] = False
            await asyncio.sleep(PROBE_S)


class Load:
    """Clients that ask ``model`` one question after the other, and what became of each.

    ``turned_away``: refused or not reached before a token, asked again; ``told``: the stream was ended by name, asked
    again; anything else that is no whole answer is ``failed``.
    """

    def __init__(self, balancer: Balancer, model: str, questions: Sequence[str]) -> None:
        self._balancer = balancer
        self._model = model
        self._questions = questions
        self.wanted: dict[str, str] = {}
        self._new: Counter[str] = Counter()  # answers since the last look, by the model that gave them
        self._seen = (0, 0)
        self.answers = self.turned_away = self.told = 0
        self.failed: list[str] = []
        self.wrong: list[dict[str, str]] = []
        self._ending = False

    async def undisturbed(self) -> None:
        """What each question's thought and answer are."""
        texts = await asyncio.gather(*map(self._ask, self._questions))
        self.wanted = dict(zip(self._questions, texts, strict=True))
        self.since()

    @asynccontextmanager
    async def running(self, clients: int) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._client(number)) for number in range(clients)]
        try:
            yield
        finally:
            self._ending = True
            await asyncio.gather(*tasks)

    def since(self) -> dict[str, Any]:
        """What has been since the last call."""
        told, turned = self.told - self._seen[0], self.turned_away - self._seen[1]
        self._seen = (self.told, self.turned_away)
        answers, self._new = dict(sorted(self._new.items())), Counter()
        return {"answers": answers, "turned_away": turned, "told": told, "failed": len(self.failed)}

    def summary(self) -> dict[str, int]:
        return {
            "answers": self.answers,
            "failed": len(self.failed),
            "different": len(self.wrong),
            "turned_away": self.turned_away,
            "told": self.told,
        }

    async def _client(self, number: int) -> None:
        start = number * len(self._questions) // 7 % len(self._questions)
        for question in cycle([*self._questions[start:], *self._questions[:start]]):
            if self._ending:
                return
            try:
                text = await self._ask(question)
            except (httpx.HTTPError, RuntimeError) as e:
                self.failed.append(f"{type(e).__name__}: {e}")
                continue
            self.answers += 1
            if text != self.wanted[question]:
                self.wrong.append({"question": question, "undisturbed": self.wanted[question], "got": text})

    async def _ask(self, question: str) -> str:
        """Thought and answer. Raises RuntimeError where a router refuses for another reason than that it stops."""
        for _ in range(TRIES):
            url = await self._balancer.pick()
            try:
                text = await self._stream(url, question)
            except httpx.ConnectError:  # it has just gone; the next probe will see it
                self.turned_away += 1
                await asyncio.sleep(PROBE_S)
                continue
            if text is not None:
                return text
        raise RuntimeError(f"turned away {TRIES} times")

    async def _stream(self, url: str, question: str) -> str | None:
        """None where the router stops: it said so before the stream began, or in it."""
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
            "stream": True,
        }
        text, model, whole = "", "", False
        async with self._balancer.http.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                error = json.loads(await response.aread())["error"]
                if error["code"] != TURNED_AWAY:
                    raise RuntimeError(f"{response.status_code} {error['code']}: {error['message']}")
                self.turned_away += 1
                return None
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    if event["error"]["code"] != TURNED_AWAY:
                        raise RuntimeError(f"in the stream: {event['error']['message']}")
                    self.told += 1
                    return None
                model = event["model"]
                for choice in event["choices"]:
                    text += choice["delta"].get("content") or choice["delta"].get("reasoning") or ""
                    whole |= choice["finish_reason"] is not None
        if not whole:
            raise RuntimeError("the stream broke off without a word")
        self._new[model] += 1
        return text
