"""A simulated fleet beside the real one: the same requests at the same times, live and simulated.

`python -m r1_bench.calibration --write` rehearses a plan, runs `r1 calibrate` on it, finds out what it takes, asks it
problems at shares of that (Poisson), and simulates the very requests, with the lengths that came, on the profile.

A machine that others use is faster now and slower then, by more than the gates. So calibrations and replays take turns:
each replay is simulated on the calibrations before and after it, and a load's error is the median of its replays'. The
gates: throughput within 10 %, p95 TPOT within 15 %. Some ten minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from r1_cluster.plan import Plan
from r1_cluster.simulator import Linear, Simulation
from r1_cluster.simulator.calibration import Beside, Calibration, First, Step, calibrate
from r1_cluster.workload import Fixed, RequestClass, Requests, Trace, Workload
from r1_serve.nano.tasks import held_out

from r1_bench import results
from r1_bench.chat import chat, open_loop
from r1_bench.fleet import fleet

GATES = {"throughput": 0.10, "tpot_p95": 0.15}  # relative errors
MAX_TOKENS = 1024
CALIBRATE = ("--most", "16", "--seconds", "1", "--minutes", "0.5")  # short ones: there are many
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


def calibrated(url: str) -> dict[str, Any]:
    """What `r1 calibrate --json` says of the fleet at ``url``."""
    command = [sys.executable, "-m", "r1_serve.cli", "calibrate", "--router", url, "--json", *CALIBRATE]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def fit(*told: Mapping[str, Any]) -> Calibration:
    """Of all that these calibrations measured."""

    def each(name: str, kind: Callable[..., Any]) -> list[Any]:
        return [
            kind(**{key: value for key, value in one.items() if key != "error"}) for each in told for one in each[name]
        ]

    return calibrate(each("steps", Step), each("firsts", First), each("besides", Beside))


def compare(
    plan: Plan, url: str, args: argparse.Namespace, calibrations: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A replay of each load a round, between two calibrations, which are appended to ``calibrations``; before them what
    the fleet takes when all comes at once."""
    burst = asyncio.run(replay(url, [(0.0, question) for _, question in questions_at(1.0, args.burst, seed=99)]))
    most = len(burst) / max(one.last for one in burst)
    calibrations.append(calibrated(url))
    for number in range(args.rounds):
        replays = [
            (share, asyncio.run(replay(url, questions_at(share * most, args.for_s, number)))) for share in args.loads
        ]
        calibrations.append(calibrated(url))
        profile = fit(*calibrations[-2:]).linear
        for share, served in replays:
            measured, model = live(served), simulated(plan, profile, served)
            yield {
                "load": share,
                "round": number,
                "per_second": round(share * most, 3),
                "requests": len(served),
                **{
                    name: {"measured": round(measured[name], 5), "simulated": round(model[name], 5)}
                    | {"error": round(model[name] / measured[name] - 1, 4)}
                    for name in FIGURES
                },
            }


def judged(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By load, the median errors and whether they are within the gates."""
    verdicts = []
    for load in dict.fromkeys(row["load"] for row in rows):
        of = [row for row in rows if row["load"] == load]
        errors = {name: round(statistics.median(row[name]["error"] for row in of), 4) for name in FIGURES}
        kept = all(abs(errors[name]) <= gate for name, gate in GATES.items())
        verdicts.append({"load": load, "replays": len(of), **errors, "kept": kept})
    return verdicts


def page(result: dict[str, Any]) -> str:
    environment = result["environment"]
    lines = [
        f"# Simulated beside measured: {result['plan']}",
        "",
        f"`{environment['command']}` on {environment['date']}, {environment['hardware']}, {environment['versions']}, "
        f"load average before {result['load_average']}.",
        "",
        "`r1 calibrate` measured costs on the running fleet, then the fleet was asked held-out problems, and so on by "
        "turns. The simulator got the very same problems with the lengths that came, on the costs of the calibrations "
        f"before and after them. The gates, for the median error: throughput {GATES['throughput']:.0%}, p95 TPOT "
        f"{GATES['tpot_p95']:.0%}.",
        "",
        "| load | replays | " + " | ".join(f"{name}, error" for name in FIGURES.values()) + " | kept |",
        "|---" * (len(FIGURES) + 3) + "|",
    ]
    for verdict in result["loads"]:
        errors = " | ".join(f"{verdict[name]:+.1%}" for name in FIGURES)
        kept = "yes" if verdict["kept"] else "**no**"
        lines.append(f"| {verdict['load']} | {verdict['replays']} | {errors} | {kept} |")
    lines += ["", "Each replay, measured / simulated (error):", ""]
    lines += [
        "| load | problems/s | requests | " + " | ".join(FIGURES.values()) + " |",
        "|---" * (len(FIGURES) + 3) + "|",
    ]
    for row in result["rows"]:
        cells = []
        for name in FIGURES:
            scale, unit = (1.0, "") if name == "throughput" else (1e3, " ms")
            found = row[name]
            cells.append(
                f"{found['measured'] * scale:.4g} / {found['simulated'] * scale:.4g}{unit} ({found['error']:+.1%})"
            )
        lines.append(f"| {row['load']} | {row['per_second']} | {row['requests']} | {' | '.join(cells)} |")
    names = [name for name in result["calibrations"][0] if name.endswith("_s")]
    lines += ["", "What each calibration found, in milliseconds, and the cores in use before it:", ""]
    lines += ["| " + " | ".join(names) + " | cores |", "|---" * (len(names) + 1) + "|"]
    for told in result["calibrations"]:
        costs = " | ".join(f"{told[name] * 1e3:.4g}" for name in names)
        lines.append(f"| {costs} | {told['cores_busy_before']:.0%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", default="nano-tp1")
    parser.add_argument("--loads", type=float, nargs="*", default=[0.4, 0.7], help="shares of what it takes")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--for-s", type=float, default=15.0, help="seconds in which a replay's problems come")
    parser.add_argument("--burst", type=int, default=60, help="problems at once from which what it takes is found")
    parser.add_argument("--write", action="store_true", help="leave it in benchmarks/results")
    args = parser.parse_args()
    before = round(os.getloadavg()[0], 2)
    rows: list[dict[str, Any]] = []
    calibrations: list[dict[str, Any]] = []
    with fleet(args.plan) as running:
        for row in compare(Plan.load(args.plan), running.url, args, calibrations):
            rows.append(row)
            print(json.dumps(row), flush=True)
    loads = judged(rows)
    result = {
        "environment": results.environment(),
        "load_average": before,
        "plan": args.plan,
        "gates": GATES,
        "loads": loads,
        "rows": rows,
        "calibrations": calibrations,
    }
    if args.write:
        print(results.write(f"calibration_{args.plan}_cpu", result, page(result)))
    print(json.dumps({"plan": args.plan, "loads": len(loads), "kept": sum(load["kept"] for load in loads)}))


if __name__ == "__main__":
    main()
