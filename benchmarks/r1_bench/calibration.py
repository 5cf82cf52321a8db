"""A simulated fleet beside the real one: the same requests at the same times, live and simulated.

`python -m r1_bench.calibration --write` rehearses a plan, runs `r1 calibrate` on it, finds out what it takes, asks it
problems at shares of that (Poisson), and simulates the very requests, with the lengths that came, on the profile. Twice
for each load, with other arrivals. The gates: throughput within 10 %, p95 TPOT within 15 %. Some six minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from r1_cluster.plan import Plan
from r1_cluster.simulator import Linear, Simulation
from r1_cluster.simulator.options import load_profile
from r1_cluster.workload import Fixed, RequestClass, Requests, Trace, Workload
from r1_serve.nano.tasks import held_out

from r1_bench import results
from r1_bench.chat import chat, open_loop
from r1_bench.fleet import fleet

GATES = {"throughput": 0.10, "tpot_p95": 0.15}  # relative errors
MAX_TOKENS = 1024
LENGTHS = ("prompt", "reasoning", "answer")
FIGURES = {"throughput": "tokens/s", "tpot_mean": "TPOT mean", "tpot_p95": "TPOT p95", "ttft_p50": "TTFT p50"}


@dataclass
class Served:
    """One request as its client saw it: ``at`` in seconds from the first one's arrival, tokens by the usage."""

    at: float
    first: float = 0.0
    last: float = 0.0
    prompt: int = 0
    reasoning: int = 0
    answer: int = 0

    @property
    def tokens(self) -> int:
        return self.reasoning + self.answer


async def ask(client: httpx.AsyncClient, question: str, served: Served) -> None:
    """Raises ChatError."""
    async for chunk in chat(client, question, max_tokens=MAX_TOKENS):
        now = time.perf_counter()
        if chunk.thinking or chunk.answer:
            served.first = served.first or now
            served.last = now
        if chunk.usage:
            served.prompt, served.reasoning = chunk.usage["prompt_tokens"], _reasoning(chunk.usage)
            served.answer = chunk.usage["completion_tokens"] - served.reasoning


def _reasoning(usage: Mapping[str, Any]) -> int:
    return int(usage["completion_tokens_details"]["reasoning_tokens"])


async def replay(url: str, questions: Sequence[tuple[float, str]]) -> list[Served]:
    """Open loop: each question at its time. Times of the result are from the start."""
    served = [Served(at) for at, _ in questions]
    started = await open_loop(url, questions, lambda client, n: ask(client, questions[n][1], served[n]))
    for one in served:
        one.first, one.last = one.first - started, one.last - started
    return served


def questions_at(per_second: float, for_s: float, seed: int) -> list[tuple[float, str]]:
    rng = np.random.default_rng(seed)
    count = max(10, round(per_second * for_s))
    problems = held_out(count, seed)
    times = np.cumsum(rng.exponential(1.0 / per_second, count))
    return [(float(at - times[0]), problem.question) for at, problem in zip(times, problems, strict=True)]


def live(served: Sequence[Served]) -> dict[str, float]:
    """Tokens/s from the first arrival to the last end; TPOT and TTFT in seconds."""
    tpot = [(one.last - one.first) / (one.tokens - 1) for one in served if one.tokens > 1]
    return {
        "throughput": sum(one.tokens for one in served) / max(one.last for one in served),
        "tpot_mean": float(np.mean(tpot)),
        "tpot_p95": float(np.percentile(tpot, 95)),
        "ttft_p50": float(np.median([one.first - one.at for one in served])),
    }


class Replayed(Workload):
    """Exactly the requests that were served, in their order: nothing is drawn."""

    served: tuple[Served, ...]

    @classmethod
    def of(cls, served: Sequence[Served]) -> Replayed:
        means = (
            Fixed(tokens=max(1, round(float(np.mean([getattr(one, name) for one in served]))))) for name in LENGTHS
        )
        prompt, thinking, answer = means
        one = RequestClass(name="served", prompt_tokens=prompt, thinking_tokens=thinking, answer_tokens=answer)
        at = tuple(each.at for each in served)
        return cls(name="replay", classes=(one,), arrivals=Trace(at=at), served=tuple(served))

    def draw(self, rng: np.random.Generator, n: int = 0) -> Iterator[Requests]:
        columns = np.array([[getattr(one, name) for name in LENGTHS] for one in self.served], dtype=np.int64).T
        prompt, thinking, answer = columns
        yield Requests(np.zeros_like(prompt), prompt, thinking, answer, np.arange(len(self.served)))


def simulated(plan: Plan, profile: Linear, served: Sequence[Served]) -> dict[str, float]:
    report = Simulation(plan, Replayed.of(served), requests=len(served), profile=profile).run()
    told = report.as_dict(0.0)
    return {
        "throughput": report.metrics.output_tokens / report.simulated_seconds,
        "tpot_mean": told["tpot"]["mean"],
        "tpot_p95": told["tpot"]["p95"],
        "ttft_p50": told["ttft"]["p50"],
    }


def compare(plan: Plan, profile: Linear, url: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row a load and seed; before them what the fleet takes when all comes at once."""
    burst = asyncio.run(replay(url, [(0.0, question) for _, question in questions_at(1.0, args.burst, seed=99)]))
    most = len(burst) / max(one.last for one in burst)
    for share in args.loads:
        for seed in args.seeds:
            served = asyncio.run(replay(url, questions_at(share * most, args.for_s, seed)))
            measured, model = live(served), simulated(plan, profile, served)
            yield {
                "load": share,
                "seed": seed,
                "per_second": round(share * most, 3),
                "requests": len(served),
                **{
                    name: {"measured": round(measured[name], 5), "simulated": round(model[name], 5)}
                    | {"error": round(model[name] / measured[name] - 1, 4)}
                    for name in FIGURES
                },
                "kept": all(abs(model[name] / measured[name] - 1) <= gate for name, gate in GATES.items()),
            }


def page(result: dict[str, Any]) -> str:
    environment, profile = result["environment"], result["profile"]
    lines = [
        f"# Simulated beside measured: {result['plan']}",
        "",
        f"`{environment['command']}` on {environment['date']}, {environment['hardware']}, {environment['versions']}, "
        f"load average before {result['load_average']}.",
        "",
        "`r1 calibrate` measured the costs below on the running fleet. Then the fleet was asked held-out problems, and "
        "the simulator, on these costs, the very same ones with the lengths that came. Measured / simulated (error). "
        f"The gates: throughput {GATES['throughput']:.0%}, p95 TPOT {GATES['tpot_p95']:.0%}.",
        "",
        "| load | problems/s | requests | " + " | ".join(FIGURES.values()) + " | kept |",
        "|---" * (len(FIGURES) + 4) + "|",
    ]
    for row in result["rows"]:
        cells = []
        for name in FIGURES:
            scale, unit = (1.0, "") if name == "throughput" else (1e3, " ms")
            found = row[name]
            cells.append(
                f"{found['measured'] * scale:.4g} / {found['simulated'] * scale:.4g}{unit} ({found['error']:+.1%})"
            )
        kept = "yes" if row["kept"] else "**no**"
        lines.append(f"| {row['load']} | {row['per_second']} | {row['requests']} | {' | '.join(cells)} | {kept} |")
    lines += ["", "| cost | seconds |", "|---|---|"]
    lines += [f"| {name} | {value:.4g} |" for name, value in profile.items() if name.endswith("_s")]
    if profile["cores_busy_before"] is not None:
        lines += ["", f"{profile['cores_busy_before']:.0%} of the cores were in use before it was measured."]
    lines += ["", "| sequences | cached tokens | step, ms | fit |", "|---|---|---|---|"]
    lines += [
        f"| {step['sequences']} | {step['cached']:,.0f} | {step['seconds'] * 1e3:.2f} | {step['error']:+.1%} |"
        for step in profile["steps"]
    ]
    lines += ["", "| prompt tokens | first token, ms | fit |", "|---|---|---|"]
    lines += [
        f"| {first['prompt_tokens']} | {first['seconds'] * 1e3:.2f} | {first['error']:+.1%} |"
        for first in profile["firsts"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", default="nano-tp1")
    parser.add_argument("--loads", type=float, nargs="*", default=[0.4, 0.7, 0.95], help="shares of what it takes")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--for-s", type=float, default=30.0, help="seconds in which a replay's problems come")
    parser.add_argument("--burst", type=int, default=100, help="problems at once from which what it takes is found")
    parser.add_argument("--write", action="store_true", help="leave it in benchmarks/results")
    args = parser.parse_args()
    before = round(os.getloadavg()[0], 2)
    with fleet(args.plan) as running, tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "profile.yaml")
        command = [sys.executable, "-m", "r1_serve.cli", "calibrate", "--router", running.url]
        done = subprocess.run([*command, "--out", str(out), "--json"], check=True, capture_output=True, text=True)
        told = json.loads(done.stdout)
        rows = []
        for row in compare(Plan.load(args.plan), load_profile(out), running.url, args):
            rows.append(row)
            print(json.dumps(row), flush=True)
    result = {
        "environment": results.environment(),
        "load_average": before,
        "plan": args.plan,
        "gates": GATES,
        "profile": told,
        "rows": rows,
    }
    if args.write:
        print(results.write(f"calibration_{args.plan}_cpu", result, page(result)))
    kept = sum(row["kept"] for row in rows)
    print(json.dumps({"plan": args.plan, "rows": len(rows), "kept": kept}))


if __name__ == "__main__":
    main()
