"""What the command prints for a reader: the thought apart from the answer, where to reach the API, and how."""

from __future__ import annotations

import json
from typing import Any

from r1_cluster.plan import Plan
from rich.console import Console
from rich.text import Text

from r1_serve.launch.ask import Answer


class Reader:
    """Prints a stream as it comes: thinking dim, answer plain, a blank line between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._kind = ""

    def __call__(self, kind: str, text: str) -> None:
        if kind != self._kind:
            start = "" if not self._kind else "\n\n"
            self._console.print(Text(f"{start}{'Thinking' if kind == 'reasoning' else 'Answer'}", style="bold"))
            self._kind = kind
        self._console.print(Text(text, style="dim" if kind == "reasoning" else ""), end="", soft_wrap=True)

    def end(self, answer: Answer) -> None:
        self._console.print()
        if answer.finish_reason == "length":
            self._console.print(Text("(cut off by max_tokens)", style="dim"))
        self._console.print(Text(usage_line(answer.usage), style="dim"))


def usage_line(usage: dict[str, Any]) -> str:
    """One line of counts: prompt, thinking, all tokens written."""
    details = usage.get("completion_tokens_details") or {}
    return (
        f"{usage.get('prompt_tokens', 0)} prompt tokens, {details.get('reasoning_tokens', 0)} of thinking, "
        f"{usage.get('completion_tokens', 0)} written in all"
    )


def address(host: str, port: int) -> str:
    """``host:port`` as a client on this machine writes it; a router that listens everywhere is also here."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"[{here}]:{port}" if ":" in here else f"{here}:{port}"


def endpoints(plan: Plan, *, http: str, grpc: str, logs: str) -> str:
    """Where everything is (``http`` and ``grpc`` are host:port), and two examples that work as printed."""
    body = json.dumps({"model": plan.model.name, "messages": [{"role": "user", "content": "Is 91 prime?"}]})
    url = f"http://{http}"
    return f"""
  HTTP      {url}/v1   (OpenAI chat completions)
  gRPC      {grpc}   (r1.v1.Reasoning; reflection and health are on)
  metrics   {url}/metrics
  plan      {plan.name} ({shape(plan)}, hash {plan.hash})
  logs      {logs}

curl -s {url}/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{body}'

from openai import OpenAI
client = OpenAI(base_url="{url}/v1", api_key="none")
reply = client.chat.completions.create(
    model="{plan.model.name}", messages=[{{"role": "user", "content": "Is 91 prime?"}}]
)
print(reply.choices[0].message.reasoning_content)
print(reply.choices[0].message.content)

Ctrl-C ends it."""


def shape(plan: Plan) -> str:
    """The pools in short: ``TP2xDP2xEP4``, ``2 x TP1``."""
    return " + ".join(f"{pool.gangs} x {pool.layout}" if pool.gangs > 1 else str(pool.layout) for pool in plan.pools)


def once(plan: Plan, answer: Answer, startup_seconds: float) -> str:
    """The one JSON object of ``--once``, on one line."""
    return json.dumps(
        {
            "reasoning": answer.reasoning,
            "answer": answer.answer,
            "usage": answer.usage,
            "plan": {"name": plan.name, "hash": plan.hash, "layout": shape(plan), "accelerators": plan.accelerators},
            "startup_seconds": round(startup_seconds, 1),
        },
        ensure_ascii=False,
    )
