"""Routing policies on a real fleet: r1-nano on CPU ranks with so little KV cache that long thoughts are preempted.

`python -m r1_bench.policies_fleet` rehearses nano-dp2-ep2 once for each policy and seed, interleaved, sends the same
problems at the same times, and writes benchmarks/results/policies_fleet_*. Most problems need a short thought, some a
long one (multiplication, sorting, primes). On CPU, MLA has no prefix cache: a prefix hit is worth nothing here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from r1_cluster.plan import Plan
from r1_serve.nano.tasks import held_out

from r1_bench import results
from r1_bench.chat import ChatError, chat
from r1_bench.fleet import Fleet, fleet

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


async def replay(where: Fleet, questions: Sequence[tuple[float, str]]) -> list[Served]:
    """Open loop: each question at its time, whatever became of the others."""
    limits = httpx.Limits(max_connections=None)
    served = [Served() for _ in questions]
    async with (
        httpx.AsyncClient(base_url=where.url, timeout=600, limits=limits, trust_env=False) as client,
        asyncio.TaskGroup() as group,
    ):
        started = time.monotonic()
        for (at, question), one in zip(questions, served, strict=True):
            await asyncio.sleep(started + at - time.monotonic())
            group.create_task(ask(client, question, one))
    return served


def preemptions(where: Fleet) -> int:
    """Of all ranks so far, once they have run dry: a step's frame brings its tokens and the rank's count together."""
    deadline = time.monotonic() + DRY_S
    while True:
        read = ranks(httpx.get(f"{where.url}/metrics", trust_env=False).text)
        if read["running"] + read["waiting"] == 0:
            return round(read["preemptions"])
        if time.monotonic() > deadline:
            raise RuntimeError(f"ranks still at work {DRY_S:g} s after the last answer: {read}")
        time.sleep(0.05)


def ranks(metrics: str) -> dict[str, float]:
    """What the ranks run, have waiting and have preempted, in sum."""
    return {
        name: sum(map(float, re.findall(rf"^r1_rank_{name}\{{.*\}} (\S+)$", metrics, re.M)))
        for name in ("running", "waiting", "preemptions")
    }


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


def small_plan(folder: Path, kv_gib: float, seats: int) -> str:
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
    return str(path)


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


def table(result: dict[str, Any]) -> str:
    environment = result["environment"]
    lines = [
        "# Routing policies on the real nano fleet",
        "",
        f"`{environment['command']}` on {environment['date']}, {environment['hardware']}, {environment['versions']}.",
        f"{PLAN} with {result['kv_gib']} GiB of KV cache and {result['seats']} seats a rank; {result['n']} problems at "
        f"{result['per_second']:g} a second (Poisson), {result['long_share']:.0%} of them with a long thought, greedy, "
        f"after {result['warmup']} others from which the router learned lengths; policies take turns, the fleet "
        "started anew for each. "
        f"Good: TTFT within {TTFT_S:g} s and TPOT within {TPOT_S * 1e3:g} ms.",
        "",
        "| policy | seed | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for policy in POLICIES:
        rows = [row for row in result["rows"] if row["policy"] == policy]
        lines += [f"| {policy} | {row['seed']} | " + " | ".join(f"{row[c]:g}" for c in COLUMNS) + " |" for row in rows]
        mean = [f"{np.mean([row[c] for row in rows]):.4g}" for c in COLUMNS]
        lines.append(f"| **{policy}** | mean | " + " | ".join(mean) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=160, help="problems a replay")
    parser.add_argument("--warmup", type=int, default=60, help="problems before it, from which lengths are learned")
    parser.add_argument("--per-second", type=float, default=4.0)
    parser.add_argument("--long-share", type=float, default=0.35)
    parser.add_argument("--kv-gib", type=float, default=0.019, help="KV cache a rank")
    parser.add_argument("--seats", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--policies", nargs="*", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/policies_fleet_*_cpu_*")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plan = small_plan(Path(folder), args.kv_gib, args.seats)
        for turn, seed in enumerate(args.seeds):
            questions = asked(args.n, args.per_second, args.long_share, seed)
            warm = asked(args.warmup, args.per_second, args.long_share, seed + 1000)
            for policy in args.policies[turn:] + args.policies[:turn]:
                with fleet(plan, settings={"R1_POLICY": policy}) as where:
                    asyncio.run(replay(where, warm))
                    before = preemptions(where)
                    started = time.monotonic()
                    served = asyncio.run(replay(where, questions))
                    seconds = time.monotonic() - started
                    row = {"policy": policy, "seed": seed, "preemptions": preemptions(where) - before}
                rows.append(row | summary(served, seconds))
                print(json.dumps(rows[-1]), flush=True)
    result = {"environment": results.environment(), **vars(args), "rows": rows}
    if args.write:
        print(results.write(f"policies_fleet_{args.per_second:g}_a_second_cpu", result, table(result)))


if __name__ == "__main__":
    main()
