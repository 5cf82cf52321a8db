"""One question over HTTP: the thought and the answer as they come, the usage at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from r1_serve.errors import R1Error, StartupError

Show = Callable[[str, str], None]  # ("reasoning" or "answer", text)


@dataclass(frozen=True)
class Answer:
    """What came back: texts, OpenAI-shaped usage, and why it ended (``stop`` or ``length``)."""

    model: str
    reasoning: str
    answer: str
    usage: dict[str, Any]
    finish_reason: str


class Refused(R1Error):
    """The router refused the request; the message is the router's own."""

    reason = "refused"


def ask(
    url: str,
    question: str,
    *,
    model: str | None = None,
    temperature: float | None = None,
    show: Show | None = None,
    timeout_s: float = 600.0,
    transport: httpx.BaseTransport | None = None,
) -> Answer:
    """Stream one answer from ``url`` (without ``/v1``); ``model`` defaults to the first one served.

    Raises StartupError where nothing answers, Refused where the router refuses or breaks off.
    """
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if temperature is not None:
        body["temperature"] = temperature
    texts = {"reasoning": "", "answer": ""}
    usage: dict[str, Any] = {}
    finish = ""
    timeout = httpx.Timeout(timeout_s, connect=5.0)
    # trust_env: a proxy of the environment must not stand between us and this machine.
    with httpx.Client(base_url=url, timeout=timeout, transport=transport, trust_env=False) as client:
        try:
            body["model"] = model or _first_model(client)
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise Refused(_message(response))
                for event in _events(response.iter_lines()):
                    if "error" in event:
                        raise Refused(str(event["error"].get("message", event["error"])))
                    usage = event.get("usage") or usage
                    for choice in event.get("choices", ()):
                        delta = choice.get("delta", {})
                        finish = choice.get("finish_reason") or finish
                        for kind, key in (("reasoning", "reasoning_content"), ("answer", "content")):
                            if text := delta.get(key):
                                texts[kind] += text
                                if show is not None:
                                    show(kind, text)
        except httpx.HTTPError as e:
            raise StartupError(
                f"nothing answers at {url} ({e or type(e).__name__}): start it with `make serve`, or give its --url"
            ) from e
    return Answer(str(body["model"]), texts["reasoning"], texts["answer"], usage, finish)


def _first_model(client: httpx.Client) -> str:
    response = client.get("/v1/models")
    if response.status_code != 200:
        raise Refused(_message(response))
    models = response.json()["data"]
    if not models:
        raise Refused(f"{client.base_url} serves no model")
    return str(models[0]["id"])


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a server-sent event stream, up to ``[DONE]``; comments and blank lines are skipped."""
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        yield json.loads(data)


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code} from {response.url}"
