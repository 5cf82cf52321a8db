"""`r1 smoke` says which door gave what, and fails for an answer that is not one."""

from __future__ import annotations

from typing import Any

import pytest
from r1_serve.errors import R1Error, StartupError
from r1_serve.launch import smoke as module
from r1_serve.launch.smoke import Reply, Unexpected, smoke


def ask(monkeypatch: pytest.MonkeyPatch, http: str, grpc: str, expect: str | None = "132") -> list[dict[str, Any]]:
    monkeypatch.setattr(module, "_http", lambda *_: Reply("http", "thought", http, 5, 9))
    monkeypatch.setattr(module, "_grpc", lambda *_: Reply("grpc", "thought", grpc, 5, 9))
    return smoke("47 + 85?", url="http://r1", target="r1:1", model="m", max_tokens=9, expect=expect)


def test_both_doors_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [reply["door"] for reply in ask(monkeypatch, "132", "It is 132.")] == ["http", "grpc"]


@pytest.mark.parametrize(("http", "grpc", "door"), [("131", "132", "http"), ("132", "", "grpc"), (" ", "132", "http")])
def test_an_answer_that_is_wrong_or_empty_names_its_door(
    monkeypatch: pytest.MonkeyPatch, http: str, grpc: str, door: str
) -> None:
    with pytest.raises(Unexpected, match=f"over {door} the answer is"):
        ask(monkeypatch, http, grpc)


def test_without_an_expectation_any_answer_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(monkeypatch, "whatever", "else", expect=None)


def test_a_router_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartupError, match=r"nothing answers at http://127\.0\.0\.1:9") as refused:
        smoke("?", url="http://127.0.0.1:9", target="127.0.0.1:9", model="", max_tokens=1, expect=None)
    assert isinstance(refused.value, R1Error)
