from __future__ import annotations

from typing import Any

import pytest
from r1_serve.errors import InvalidRequest
from r1_serve.router.request import ChatRequest, Message
from r1_serve.router.validate import check

ASK = [{"role": "user", "content": "x"}]

BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "x"}, "messages"),
    ({"messages": [3]}, "messages.0"),
    ({"messages": [{"content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": 1, "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": "x", "bogus": 1}]}, "messages.0.bogus"),
    ({"messages": [*ASK, {"role": "assistant", "content": "y"}]}, "messages"),
    ({"messages": [*ASK, {"role": "assistant", "content": "y", "prefix": True}]}, "messages.1"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}, *ASK]}, "messages.0"),
    ({"model": 3}, "model"),
    ({"temperature": 5}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": "0.5"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": 1.5}, "top_k"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"seed": 1 << 63}, "seed"),
    ({"seed": 1.0}, "seed"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 10.0}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"min_tokens": 1.0}, "min_tokens"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"n": True}, "n"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": ""}, "stop.0"),
    ({"stop": [1]}, "stop.0"),
    ({"stop": 5}, "stop"),
    ({"stop": "x" * 513}, "stop.0"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"bogus": 1}}, "stream_options.bogus"),
    ({"tools": [{}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"logprobs": True}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logit_bias": {"1": 2}}, "logit_bias"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"reasoning_effort": "hardest"}, "reasoning_effort"),
    ({"reasoning_effort": 3}, "reasoning_effort"),
    ({"thinking": True}, "thinking"),
    ({"thinking": {"type": "on"}}, "thinking.type"),
    ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 5}, "thinking_token_budget": 6}, "thinking"),
    ({"bogus": 1}, "bogus"),
]


@pytest.mark.parametrize(("changes", "field"), BAD, ids=[str(changes)[:60] for changes, _ in BAD])
def test_a_bad_field_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as fault:
        check({"messages": ASK} | changes).request()
    assert fault.value.field == field
    assert fault.value.message.startswith(field)


@pytest.mark.parametrize("body", [[], "x", 1, None, True])
def test_a_body_that_is_no_object_is_refused(body: Any) -> None:
    with pytest.raises(InvalidRequest, match="must be a JSON object"):
        check(body)


HARMLESS: list[dict[str, Any]] = [
    {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"},
    {"logit_bias": {}, "tools": [], "tool_choice": "none", "logprobs": False, "response_format": {"type": "text"}},
    {"tools": None, "functions": None, "audio": None, "reasoning_effort": None},
    {"temperature": None, "top_p": None, "n": None, "stop": None, "stream": None, "max_tokens": None},
    {"parallel_tool_calls": False, "prompt_cache_key": "k"},
    {"stream": True, "stream_options": {"include_usage": True}},
]


@pytest.mark.parametrize("changes", HARMLESS)
def test_fields_that_change_nothing_are_let_through(changes: dict[str, Any]) -> None:
    assert check({"messages": ASK} | changes).request() == ChatRequest("", (Message("user", "x"),))


def test_every_supported_field_arrives() -> None:
    body = {
        "model": "m",
        "messages": ASK,
        "temperature": 0,
        "top_p": 1,
        "top_k": -1,
        "min_p": 0.1,
        "presence_penalty": -2,
        "frequency_penalty": 2,
        "repetition_penalty": 1.1,
        "seed": -5,
        "max_completion_tokens": 7,
        "min_tokens": 4,
        "ignore_eos": True,
        "n": 3,
        "stop": "END",
    }
    assert check(body).request() == ChatRequest(
        "m",
        (Message("user", "x"),),
        0.0,
        1.0,
        0,
        0.1,
        -2.0,
        2.0,
        1.1,
        -5,
        7,
        3,
        ("END",),
        min_tokens=4,
        ignore_eos=True,
    )


def test_text_parts_are_joined_and_developer_means_system() -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": "x", "name": "jo"},
    ]
    assert check({"messages": messages}).request().messages == (Message("system", "ab"), Message("user", "x"))


@pytest.mark.parametrize("content", [None, "", "4"])
def test_an_assistants_message_comes_back_as_clients_store_it(content: str | None) -> None:
    echoed: dict[str, Any] = {
        "role": "assistant",
        "content": content,
        "reasoning_content": "hm",
        "reasoning": "hm",
        "refusal": None,
        "annotations": [],
        "tool_calls": None,
        "prefix": False,
    }
    asked = check({"messages": [*ASK, echoed, *ASK]}).request()
    assert asked.messages[1] == Message("assistant", content or "")
