"""Requests that must never reach an engine, over the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest

ASK: list[Any] = [{"role": "user", "content": "x"}]
URL = "/v1/chat/completions"


@pytest.fixture
async def http(world: Any) -> AsyncIterator[httpx.AsyncClient]:
    worker = await world.worker()
    async with httpx.AsyncClient(base_url=world.http) as client:
        yield client
    assert worker.submits.empty()


BAD = [
    ({"model": "gpt-9", "messages": ASK}, 404, "model_not_found", "model"),
    ({"messages": ASK, "max_tokens": -1}, 400, "invalid_request", "max_tokens"),
    ({"messages": ASK, "min_tokens": -1}, 400, "invalid_request", "min_tokens"),
    ({"messages": ASK, "max_tokens": 5, "min_tokens": 6}, 400, "invalid_request", "min_tokens"),
    ({"messages": []}, 400, "invalid_request", "messages"),
    ({"messages": ASK, "temperature": 5}, 400, "invalid_request", "temperature"),
    ({"messages": ASK, "temperature": "hot"}, 400, "invalid_request", "temperature"),
    ({"messages": ASK, "n": 1000}, 400, "invalid_request", "n"),
    ({"messages": ASK, "stream_options": {"include_usage": True}}, 400, "invalid_request", "stream_options"),
    ({"messages": ASK, "tools": [{}]}, 400, "invalid_request", "tools"),
]


@pytest.mark.parametrize(("body", "status", "code", "field"), BAD, ids=[field for *_, field in BAD])
async def test_a_bad_field_is_named_in_openais_shape(
    http: httpx.AsyncClient, body: dict[str, Any], status: int, code: str, field: str
) -> None:
    response = await http.post(URL, json=body)
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, field)
    assert field in error["message"]
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"messages": [}', "not valid JSON"),
        (b'{"model": "\xff"}', "not valid UTF-8 (byte 11)"),
        (b'{"model": "\\ud800"}', "not valid JSON"),
        (b'{"temperature": NaN}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"metadata":' * 2000 + b"1" + b"}" * 2000, "not valid JSON"),
        (b"[1]", "must be a JSON object, not an array"),
    ],
    ids=["empty", "cut", "broken", "UTF-8", "surrogate", "NaN", "deep array", "deep object", "array"],
)
async def test_a_body_that_is_no_json_object_is_refused(http: httpx.AsyncClient, body: bytes, message: str) -> None:
    response = await http.post(URL, content=body)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def too_large() -> bytes:
    return orjson.dumps({"messages": [{"role": "user", "content": "x" * (4 << 20)}]})


async def chunked(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 100_000):
        yield body[start : start + 100_000]


@pytest.mark.parametrize("content", [too_large, lambda: chunked(too_large())], ids=["announced", "chunked"])
async def test_a_body_over_the_limit_is_refused(http: httpx.AsyncClient, content: Any) -> None:
    response = await http.post(URL, content=content())
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"
    assert "4194304" in response.json()["error"]["message"]


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan", "inf", ""])
async def test_a_timeout_that_is_no_time_is_refused(http: httpx.AsyncClient, given: str) -> None:
    response = await http.post(URL, json={"messages": ASK}, headers={"X-Request-Timeout": given})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "x-request-timeout"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", URL, 405), ("PUT", "/health", 405), ("GET", "/v1/models/gpt-9", 404)],
)
async def test_a_wrong_path_or_method_is_told_in_the_same_shape(
    http: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await http.request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


async def test_a_fault_of_ours_shows_its_request_id_and_nothing_else(
    http: httpx.AsyncClient, world: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(world.router.service.desk, "admit", broken)
    response = await http.post(URL, json={"messages": ASK})
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in response.json()["error"]["message"]
    assert "ZeroDivisionError" in caplog.text


async def test_refusals_are_counted_without_a_series_a_name(http: httpx.AsyncClient, world: Any) -> None:
    for name in ("a", "b", "c"):
        await http.post(URL, json={"model": name, "messages": ASK})
    assert world.metric("r1_requests_total", model="unknown", outcome="model_not_found") == 3
