from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import pytest
from r1_serve import logs
from r1_serve.errors import UnknownModel
from r1_serve.settings import LogSettings

SECRET = "xyzzy-the-secret"
ASK: list[Any] = [{"role": "user", "content": f"{SECRET} 1 + 1"}]


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """Everything logged while the test runs, at DEBUG; the loggers are as before afterwards."""
    names = ("", "r1_serve", "uvicorn", "httpx", "asyncio", "grpc")
    before = [(name, logging.getLogger(name).level, logging.getLogger(name).handlers[:]) for name in names]
    yield io.StringIO()
    logging.captureWarnings(False)
    for name, level, handlers in before:
        logging.getLogger(name).setLevel(level)
        logging.getLogger(name).handlers[:] = handlers


def configure(stream: io.StringIO, form: Literal["text", "json"] = "json") -> logging.Logger:
    logs.configure(LogSettings(log_level="debug", log_format=form), stream)
    return logging.getLogger("r1_serve.test")


def test_a_line_is_one_json_object_with_time_level_logger_message_and_permitted_fields(written: io.StringIO) -> None:
    logger = configure(written)
    logger.warning("request %s\nended", "a1", extra={"request_id": "a1", "answer_tokens": 3, "prompt": SECRET})
    (line,) = written.getvalue().splitlines()
    told = json.loads(line)
    assert told.pop("time").endswith("Z")
    assert told == {
        "level": "warning",
        "logger": "r1_serve.test",
        "message": "request a1\nended",
        "request_id": "a1",
        "answer_tokens": 3,
    }


@pytest.mark.parametrize("form", ["json", "text"])
def test_of_an_exception_only_its_type_and_place_are_told(written: io.StringIO, form: Literal["text", "json"]) -> None:
    logger = configure(written, form)
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as e:
            raise ValueError(f"bad input {SECRET}") from e
    except ValueError:
        logger.exception("failed")
    (line,) = written.getvalue().splitlines()
    assert SECRET not in line
    assert "builtins.ValueError" in line
    assert "test_logs.py" in line


def test_the_message_of_our_own_refusals_is_told(written: io.StringIO) -> None:
    logger = configure(written)
    try:
        raise UnknownModel("no model of that name")
    except UnknownModel:
        logger.exception("failed")
    assert json.loads(written.getvalue())["error"]["message"] == "no model of that name"


def test_configuring_twice_writes_each_line_once(written: io.StringIO) -> None:
    configure(written)
    configure(written).info("once")
    assert len(written.getvalue().splitlines()) == 1


def test_warnings_become_lines(written: io.StringIO) -> None:
    configure(written)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("careful", stacklevel=1)
    assert json.loads(written.getvalue())["logger"] == "py.warnings"


async def test_no_line_of_a_router_holds_what_was_asked_or_answered(
    world: Any, says: Any, written: io.StringIO
) -> None:
    configure(written)
    await world.worker(says("why the zebra</think>because the zebra"))
    async with httpx.AsyncClient(base_url=world.http) as http:
        body = {"model": "r1-nano", "messages": ASK}
        good = await http.post("/v1/chat/completions", json=body, headers={"x-request-id": "req-7"})
        bad = await http.post("/v1/chat/completions", json=body | {"temperature": SECRET})
        worse = await http.post("/v1/chat/completions", content=f'{{"{SECRET}')
    assert (good.status_code, bad.status_code, worse.status_code) == (200, 400, 400)
    text = written.getvalue()
    assert SECRET not in text
    assert "zebra" not in text
    told = [line for line in map(json.loads, text.splitlines()) if line.get("request_id") == "req-7"]
    ended = next(line for line in told if line.get("outcome"))
    assert (ended["outcome"], ended["model"], ended["tenant"]) == ("ok", "r1-nano", "default")
    assert ended["reasoning_tokens"] > 0
    assert ended["seconds"] >= 0
