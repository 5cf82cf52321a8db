"""The same held-out problems, greedily, on every shipped layout and in transformers: same answers, same accuracy?

`python -m r1_bench.topology` starts each layout in turn, asks and compares; `--write` keeps the result.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httpx
from r1_cluster.plan import shipped
from r1_serve.nano.tasks import Problem, check, held_out

from r1_bench import results
from r1_bench.fleet import Fleet, fleet

MAX_TOKENS = 900
STREAMS = 32
REFERENCE = "transformers"
DRAFTS = ("r1_rank_draft_tokens_total", "r1_rank_accepted_draft_tokens_total")
TIMES = ("startup_seconds", "seconds", "tokens_per_second", "drafts_accepted")


@dataclass(frozen=True)
class Reply:
    """One greedy answer; white space around thought and answer is left out of comparisons."""

    question: str
    reasoning: str
    answer: str
    completion_tokens: int


async def ask_all(where: Fleet, questions: Sequence[str], model: str = "r1-nano") -> list[Reply]:
    """Every question over HTTP, ``STREAMS`` at a time, in order."""
    gate = asyncio.Semaphore(STREAMS)
    # A connection a question: a broken read is then the router's, not that of a connection closed while it was idle.
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=where.url, timeout=600, trust_env=False, limits=limits) as client:

        async def ask(question: str) -> Reply:
            body = {
                "model": model,
                "messages": [{"role": "user", "content": question}],
                "temperature": 0,
                "max_tokens": MAX_TOKENS,
            }
            async with gate:
                response = await client.post("/v1/chat/completions", json=body)
            response.raise_for_status()
            got = response.json()
            message, usage = got["choices"][0]["message"], got["usage"]
            thought, answer = ((message[key] or "").strip() for key in ("reasoning_content", "content"))
            return Reply(question, thought, answer, usage["completion_tokens"])

        return list(await asyncio.gather(*map(ask, questions)))


def reference(served: Sequence[Reply]) -> list[Reply]:
    """transformers' greedy replies to the questions of ``served``, in a process of its own (threads, memory)."""
    lines = "".join(json.dumps(asdict(reply)) + "\n" for reply in served)
    command = [sys.executable, "-m", "r1_serve.nano.reference"]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, input=lines).stdout
    return [Reply(**json.loads(line)) for line in printed.splitlines()]


def accuracy(problems: Sequence[Problem], replies: Sequence[Reply]) -> float:
    return sum(check(p, r.answer) for p, r in zip(problems, replies, strict=True)) / len(problems)


def different(problems: Sequence[Problem], a: Sequence[Reply], b: Sequence[Reply]) -> list[dict[str, Any]]:
    """The problems answered differently, with both replies, to be read one by one."""
    return [
        {"question": p.question, "final": p.final, "reference": asdict(x), "got": asdict(y)}
        for p, x, y in zip(problems, a, b, strict=True)
        if x != y
    ]


def drafts_accepted(where: Fleet) -> float | None:
    """The share of drafted tokens that were taken; None where none are drafted."""
    drafted, accepted = where.metrics(*DRAFTS)
    return round(accepted / drafted, 3) if drafted else None


def row(
    name: str, problems: Sequence[Problem], truth: Sequence[Reply], replies: Sequence[Reply], **more: Any
) -> dict[str, Any]:
    """One layout's line of the table, with every differing reply."""
    return {
        "layout": name,
        "accuracy": round(accuracy(problems, replies), 4),
        "same_as_transformers": len(problems) - len(different(problems, truth, replies)),
        **more,
        "different": different(problems, truth, replies),
    }


def table(result: dict[str, Any]) -> str:
    n, environment = result["problems"], result["environment"]
    lines = [
        "# The same questions on every layout",
        "",
        f"`{environment['command']}` on {environment['date']}, {environment['hardware']}, {environment['versions']}.",
        f"{n} held-out problems (seed {result['seed']}), greedy, float32, at most {MAX_TOKENS} tokens, "
        f"{STREAMS} at a time through the router over HTTP.",
        "A reply is the same when thought, answer and token count all are.",
        "",
        "| layout | accuracy | same as transformers | seconds to ready | seconds to answer | tokens/s | drafts taken |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in result["rows"]:
        times = ["–" if r.get(key) is None else r[key] for key in TIMES]
        same = f"{r['same_as_transformers']} of {n}"
        lines.append(f"| {r['layout']} | {r['accuracy']:.1%} | {same} | {' | '.join(map(str, times))} |")
    for r in result["rows"]:
        for d in r["different"]:
            lines += ["", f"{r['layout']}, “{d['question']}” (right: {d['final']})", "", "```"]
            lines += [f"{who}: {d[who]['reasoning']} ⇒ {d[who]['answer']}" for who in ("reference", "got")]
            lines += ["```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plans", nargs="*", default=[name for name in shipped() if name.startswith("nano")])
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/topology_cpu_*")
    args = parser.parse_args()
    problems = held_out(args.n, args.seed)
    questions = [problem.question for problem in problems]
    truth: list[Reply] = []
    rows: list[dict[str, Any]] = []
    for plan in args.plans:
        with fleet(plan) as where:
            started = time.monotonic()
            replies = asyncio.run(ask_all(where, questions))
            seconds = time.monotonic() - started
            accepted = drafts_accepted(where)
        if not truth:
            truth = reference(replies)
            rows.append(row(REFERENCE, problems, truth, truth))
        tokens = sum(reply.completion_tokens for reply in replies)
        times = {
            "startup_seconds": round(where.startup_seconds, 1),
            "seconds": round(seconds, 1),
            "tokens_per_second": round(tokens / seconds),
            "drafts_accepted": accepted,
        }
        rows.append(row(plan, problems, truth, replies, **times))
        last = rows[-1]
        print(f"{plan}: {last['accuracy']:.1%}, {last['same_as_transformers']} of {args.n} as {REFERENCE}", flush=True)
    result = {"environment": results.environment(), "problems": args.n, "seed": args.seed, "rows": rows}
    print(table(result))
    if args.write:
        print(results.write("topology_cpu", result, table(result)))


if __name__ == "__main__":
    main()
