"""Routing policies on a real fleet: r1-nano on CPU ranks with so little KV cache that long thoughts are preempted.

`python -m r1_bench.policies_fleet` rehearses nano-dp2-ep2 once with a router for each policy, finds out how many
problems a second the fleet can take, and sends the same problems at the same times through one router after the other,
below that rate and above it. Most problems need a short thought, some a long one (multiplication, sorting, primes). On
CPU, MLA has no prefix cache: a prefix hit is worth nothing here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from r1_cluster.plan import Plan
from r1_serve.nano.tasks import held_out

from r1_bench import results
from r1_bench.chat import ChatError, chat, open_loop
from r1_bench.fleet import total
from r1_bench.routers import side_by_side

PLAN = "nano-dp2-ep2"
POLICIES = ("least_load", "prefix_aware", "thinking_aware")
LONG = ("multiplication", "sorting", "primality")
TTFT_S, TPOT_S = 2.0, 0.1  # what a good answer keeps to, on two cores
MAX_TOKENS = 600
POOL = 400  # problems to draw from
DRY_S = 30.0  # a rank tells its load at least once a second


@dataclass
class Served:
    """One request as its client saw it; times in seconds."""

    ttft_s: float = 0.0
    tpot_s: float = 0.0
    tokens: int = 0
    error: str | None = None

    @property
    def good(self) -> bool:
        return self.error is None and self.ttft_s <= TTFT_S and self.tpot_s <= TPOT_S


def asked(n: int, per_second: float, long_share: float, seed: int) -> list[tuple[float, str]]:
    """(when in seconds, question): Poisson arrivals, the same for a seed."""
    rng = random.Random(seed)
    pool = held_out(POOL, seed)
    long = [p.question for p in pool if p.task in LONG and len(p.thinking) > 400]
    short = [p.question for p in pool if p.task not in LONG]
    at, out = 0.0, []
    for _ in range(n):
        at += rng.expovariate(per_second)
        out.append((at, rng.choice(long if rng.random() < long_share else short)))
    return out


async def ask(client: httpx.AsyncClient, question: str, served: Served) -> None:
    started = time.monotonic()
    times: list[float] = []
    try:
        async for chunk in chat(client, question, max_tokens=MAX_TOKENS):
            if chunk.thinking or chunk.answer:
                times.append(time.monotonic())
            served.tokens = chunk.tokens or served.tokens
    except ChatError as e:
        served.error = str(e)
        return
    first, last = (times[0], times[-1]) if times else (started, started)
    served.ttft_s = first - started
    served.tpot_s = (last - first) / max(1, served.tokens - 1)


async def replay(url: str, questions: Sequence[tuple[float, str]]) -> list[Served]:
    """Open loop: each question at its time, whatever became of the others."""
    served = [Served() for _ in questions]
    await open_loop(url, questions, lambda client, n: ask(client, questions[n][1], served[n]))
    return served


def preemptions(url: str) -> int:
    """Of all ranks so far, once they have run dry: a step's frame brings its tokens and the rank's count together."""
    deadline = time.monotonic() + DRY_S
    while True:
        read = ranks(httpx.get(f"{url}/metrics", trust_env=False).text)
        if read["running"] + read["waiting"] == 0:
            return round(read["preemptions"])
        if time.monotonic() > deadline:
            raise RuntimeError(f"ranks still at work {DRY_S:g} s after the last answer: {read}")
        time.sleep(0.05)


def ranks(metrics: str) -> dict[str, float]:
    """What the ranks run, have waiting and have preempted, in sum."""
    return {name: total(metrics, f"r1_rank_{name}") for name in ("running", "waiting", "preemptions")}


def summary(served: Sequence[Served], seconds: float) -> dict[str, Any]:
    done = [one for one in served if one.error is None]
    tpot = np.array([one.tpot_s for one in done]) * 1e3
    ttft = np.array([one.ttft_s for one in done])
    good = sum(one.good for one in served)
    return {
        "errors": len(served) - len(done),
        "tpot_ms_p50": round(float(np.percentile(tpot, 50)), 1),
        "tpot_ms_p99": round(float(np.percentile(tpot, 99)), 1),
        "ttft_s_p50": round(float(np.percentile(ttft, 50)), 3),
        "ttft_s_p99": round(float(np.percentile(ttft, 99)), 3),
        "good_share": round(good / len(served), 4),
        "goodput_per_s": round(good / seconds, 3),
        "tokens": sum(one.tokens for one in done),
        "seconds": round(seconds, 1),
    }


def small_plan(folder: Path, kv_gib: float, seats: int) -> Path:
    """PLAN with less KV cache and ``seats`` requests a batch, as a file."""
    plan = Plan.load(PLAN)
    fleet_, engine = plan.fleet, plan.engine
    changed = plan.model_copy(
        update={
            "name": f"{PLAN}-small",
            "fleet": fleet_.model_copy(update={"kv_cache_gib_per_rank": kv_gib}),
            "engine": engine.model_copy(update={"max_num_seqs": seats}),
        }
    )
    path = folder / "plan.yaml"
    path.write_text(changed.to_yaml(), encoding="utf-8")
    return path


COLUMNS = {
    "preemptions": "preemptions",
    "tpot_ms_p50": "TPOT p50 ms",
    "tpot_ms_p99": "TPOT p99 ms",
    "ttft_s_p50": "TTFT p50 s",
    "ttft_s_p99": "TTFT p99 s",
    "good_share": "good",
    "goodput_per_s": "goodput /s",
    "seconds": "seconds",
    "errors": "errors",
}


def spread(rows: Sequence[dict[str, Any]], column: str) -> dict[str, float]:
    """Over the seeds: median, least and most."""
    values = [row[column] for row in rows]
    return {"median": float(np.median(values)), "min": min(values), "max": max(values)}


def condensed(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """By load and policy, each column's spread."""
    told: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for load in dict.fromkeys(row["load"] for row in rows):
        for policy in POLICIES:
            some = [row for row in rows if (row["load"], row["policy"]) == (load, policy)]
            if some:
                told.setdefault(f"{load:g}", {})[policy] = {c: spread(some, c) for c in COLUMNS}
    return told


def table(result: dict[str, Any]) -> str:
    environment = result["environment"]
    lines = [
        "# Routing policies on the real nano fleet",
        "",
        f"`{environment['command']}` on {environment['date']}, {environment['hardware']}, {environment['versions']}.",
        f"{PLAN} with {result['kv_gib']} GiB of KV cache and {result['seats']} seats a rank, one fleet with a router "
        f"for each policy; it can take {result['capacity_per_s']:.2f} problems a second ({result['burst']} at once, "
        "mean over the policies, from which each router learned lengths). Then problems come for "
        f"{result['for_s']:g} s at a multiple of that rate (Poisson), {result['long_share']:.0%} of them with a long "
        "thought, greedy; policies take turns with the same problems at the same times. "
        f"Good: TTFT within {TTFT_S:g} s and TPOT within {TPOT_S * 1e3:g} ms.",
    ]
    for load, policies in result["condensed"].items():
        rate = float(load) * result["capacity_per_s"]
        lines += ["", f"## {load} of capacity, {rate:.2f} a second: median over seeds (least to most)", ""]
        lines += ["| policy | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
        for policy, columns in policies.items():
            cells = [f"{s['median']:g} ({s['min']:g} to {s['max']:g})" for s in columns.values()]
            lines.append(f"| {policy} | " + " | ".join(cells) + " |")
    lines += ["", "## Every replay", "", "| load | seed | policy | " + " | ".join(COLUMNS.values()) + " |"]
    lines.append("|---" * (len(COLUMNS) + 3) + "|")
    for row in result["rows"]:
        cells = [f"{row[c]:g}" for c in COLUMNS]
        lines.append(f"| {row['load']:g} | {row['seed']} | {row['policy']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def burst(url: str, n: int, long_share: float, seed: int) -> float:
    """Problems a second that the fleet takes when so many come at once."""
    started = time.monotonic()
    asyncio.run(replay(url, [(0.0, question) for _, question in asked(n, 1.0, long_share, seed)]))
    return n / (time.monotonic() - started)


def measure(urls: Mapping[str, str], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """First the capacity, then a row a replay."""
    found = [burst(url, args.burst, args.long_share, seed=1000) for url in urls.values()]
    capacity = float(np.mean(found))
    yield {"capacity_per_s": round(capacity, 3), "each": [round(one, 3) for one in found]}
    names = list(urls)
    for seed in args.seeds:
        for load in args.loads:
            rate = load * capacity
            questions = asked(round(rate * args.for_s), rate, args.long_share, seed)
            for policy in names:
                before, started = preemptions(urls[policy]), time.monotonic()
                served = asyncio.run(replay(urls[policy], questions))
                seconds = time.monotonic() - started
                row = {"policy": policy, "load": load, "per_second": round(rate, 3), "seed": seed, "n": len(questions)}
                yield row | {"preemptions": preemptions(urls[policy]) - before} | summary(served, seconds)
            names = names[1:] + names[:1]  # who is first takes turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--for-s", type=float, default=22.0, help="seconds in which a replay's problems come")
    parser.add_argument("--loads", type=float, nargs="*", default=[0.8, 1.3], help="shares of the capacity found")
    parser.add_argument("--burst", type=int, default=60, help="problems at once from which the capacity is found")
    parser.add_argument("--long-share", type=float, default=0.35)
    parser.add_argument("--kv-gib", type=float, default=0.019, help="KV cache a rank")
    parser.add_argument("--seats", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--policies", nargs="*", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/policies_fleet_cpu_*")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plan = small_plan(Path(folder), args.kv_gib, args.seats)
        with side_by_side(plan, {policy: {"R1_POLICY": policy} for policy in args.policies}) as found:
            rows = []
            for row in measure({policy: router.url for policy, router in found.items()}, args):
                rows.append(row)
                print(json.dumps(row), flush=True)
    capacity, rows = rows[0], rows[1:]
    result = {
        "environment": results.environment(),
        **vars(args),
        **capacity,
        "condensed": condensed(rows),
        "rows": rows,
    }
    if args.write:
        print(results.write("policies_fleet_cpu", result, table(result)))
    print(json.dumps({"capacity_per_s": capacity["capacity_per_s"], "condensed": result["condensed"]}))


if __name__ == "__main__":
    main()
