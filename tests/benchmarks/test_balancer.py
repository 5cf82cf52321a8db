"""Clients behind the drill's load balancer: what they take for a refusal, for a farewell, and for a loss."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping

import httpx
import pytest
from r1_bench.balancer import Balancer, Load

URLS = ["http://a", "http://b"]
STOPPING = {"error": {"code": "router_stopping", "message": "send the request to another"}}


def events(*told: Mapping[str, object]) -> httpx.Response:
    return httpx.Response(200, text="".join(f"data: {json.dumps(event)}\n\n" for event in told) + "data: [DONE]\n\n")


def chunk(finish: str | None = None, **delta: str) -> dict[str, object]:
    return {"model": "m", "choices": [{"delta": delta, "finish_reason": finish}]}


WHOLE = (chunk(reasoning="t"), chunk(content="a"), chunk("stop"))


async def asked(*answers: httpx.Response | Exception, ready: tuple[str, ...] = ("a", "b")) -> tuple[Load, list[str]]:
    """One client's load until the answers are used up; and the hosts it asked."""
    left, hosts = list(answers), []
    done = asyncio.Event()

    async def handle(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0)  # as a network would: others get a turn
        if request.url.path == "/ready":
            return httpx.Response(200 if request.url.host in ready else 503)
        hosts.append(request.url.host)
        answer = left.pop(0) if left else events(*WHOLE)
        if not left:
            done.set()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with Balancer(URLS, httpx.MockTransport(handle)) as balancer:
        load = Load(balancer, "best", ["q"])
        load.wanted["q"] = "ta"
        async with load.running(1), asyncio.timeout(10):
            await done.wait()
    return load, hosts


async def test_whole_answers_are_counted_by_the_model_that_gave_them() -> None:
    load, hosts = await asked(events(*WHOLE), events(*WHOLE))
    summary = load.summary()
    assert summary.pop("answers") >= 2
    assert set(summary.values()) == {0}
    assert set(hosts) == {"a", "b"}
    assert set(load.since()["answers"]) == {"m"}


@pytest.mark.parametrize("refusal", [httpx.Response(503, json=STOPPING), httpx.ConnectError("gone")])
async def test_a_client_that_is_turned_away_asks_again_and_loses_nothing(refusal: httpx.Response | Exception) -> None:
    load, _ = await asked(refusal, events(*WHOLE))
    assert (load.turned_away, load.told, load.failed, load.wrong) == (1, 0, [], [])


async def test_a_stream_that_is_ended_by_name_is_asked_again() -> None:
    load, _ = await asked(events(chunk(reasoning="t"), STOPPING), events(*WHOLE))
    assert (load.turned_away, load.told, load.failed, load.wrong) == (0, 1, [], [])


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (lambda: events(chunk(reasoning="t")), "broke off without a word"),
        (lambda: events({"error": {"code": "worker_lost", "message": "a rank died"}}), "a rank died"),
        (lambda: httpx.Response(503, json={"error": {"code": "no_workers", "message": "none"}}), "no_workers"),
        (lambda: httpx.ReadError("reset"), "reset"),
    ],
)
async def test_anything_else_is_a_failure(answer: Callable[[], httpx.Response | Exception], named: str) -> None:
    load, _ = await asked(answer(), events(*WHOLE))
    assert len(load.failed) == 1
    assert named in load.failed[0]


async def test_another_answer_than_the_undisturbed_one_is_kept() -> None:
    load, _ = await asked(events(chunk(content="x"), chunk("stop")), events(*WHOLE))
    assert [wrong["got"] for wrong in load.wrong] == ["x"]


async def test_a_router_that_is_not_ready_is_not_asked() -> None:
    _, hosts = await asked(events(*WHOLE), events(*WHOLE), ready=("b",))
    assert set(hosts) == {"b"}
