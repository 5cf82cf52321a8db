"""Routing policies on the same long-tailed thinking load: preemptions, TPOT, TTFT and goodput.

`python -m r1_bench.policies` replays it through the router's own dispatcher on a simulated fleet and writes
benchmarks/results/policies_simulated_*.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from typing import Any

import numpy as np
from r1_cluster.routing.admission import Rules
from r1_cluster.routing.budget import BudgetRules
from r1_cluster.routing.dispatcher import Dispatcher
from r1_cluster.routing.lengths import LengthForecast
from r1_cluster.routing.prefix import PrefixIndex
from r1_cluster.routing.spec import SHIPPED, PolicySpec

from r1_bench import results
from r1_bench.replay import Replay, replay
from r1_bench.simulated import Hardware
from r1_bench.thinking import BLOCK_TOKENS, questions

GANGS, RANKS_PER_GANG = 2, 4
HARDWARE = Hardware()
TTFT_S, TPOT_S = 10.0, 0.075  # what a good answer keeps to

AWARE = SHIPPED["thinking_aware"]
POLICIES = (
    SHIPPED["round_robin"],
    SHIPPED["least_load"],
    SHIPPED["prefix_aware"],
    AWARE,
    # What each half of thinking_aware is worth: where a request goes, and whether it is held back.
    AWARE.model_copy(update={"name": "thinking_aware_without_holding", "filters": ("draining", "full")}),
    SHIPPED["least_load"].model_copy(update={"name": "least_load_with_holding", "filters": AWARE.filters}),
    SHIPPED["prefix_aware"].model_copy(update={"name": "prefix_aware_with_holding", "filters": AWARE.filters}),
)


def dispatcher(spec: PolicySpec, hardware: Hardware) -> Dispatcher:
    """Everything but the policy is the same: nothing is refused, and budgets do not tighten."""
    return Dispatcher(
        spec.build(),
        lengths=LengthForecast(),
        prefix=PrefixIndex(BLOCK_TOKENS, max_blocks=hardware.kv_tokens // BLOCK_TOKENS),
        rules=Rules(max_queued=1 << 20, max_wait_s=1e9),
        budgets=BudgetRules(tighten_from=1.0),
    )


def measure(
    spec: PolicySpec, n: int, per_second: float, seed: int, *, tenants_apart: bool, hardware: Hardware = HARDWARE
) -> dict[str, Any]:
    started = time.process_time()
    asked = questions(n, per_second, seed, tenants_apart=tenants_apart)
    outcome = replay(asked, dispatcher(spec, hardware), gangs=GANGS, ranks_per_gang=RANKS_PER_GANG, hardware=hardware)
    cpu = time.process_time() - started
    return {"policy": spec.name, "per_second": per_second, "seed": seed, **summary(outcome, cpu)}


def summary(outcome: Replay, cpu_s: float) -> dict[str, Any]:
    """Of the middle of the replay: the first tenth finds an empty fleet, the last one that empties."""
    jobs = sorted(outcome.jobs, key=lambda job: job.question.at)
    kept = jobs[len(jobs) // 10 : len(jobs) - len(jobs) // 10]
    tpot = np.array([job.tpot_s for job in kept])
    ttft = np.array([job.ttft_s for job in kept])
    good = (tpot <= TPOT_S) & (ttft <= TTFT_S)
    span = kept[-1].question.at - kept[0].question.at
    return {
        "preemptions": outcome.preemptions,
        "preempted_requests": sum(job.preemptions > 0 for job in kept),
        "tpot_ms_p50": _ms(tpot, 50),
        "tpot_ms_p99": _ms(tpot, 99),
        "ttft_s_p50": round(float(np.percentile(ttft, 50)), 2),
        "ttft_s_p99": round(float(np.percentile(ttft, 99)), 2),
        "good_share": round(float(good.mean()), 4),
        "goodput_per_s": round(float(good.sum() / span), 3),
        "cached_prompt_share": round(sum(j.cached for j in kept) / sum(j.question.prompt_tokens for j in kept), 3),
        "max_queued_in_router": outcome.max_queued,
        "simulated_s": round(outcome.seconds),
        "cpu_s": round(cpu_s, 1),
    }


def _ms(seconds: np.ndarray[Any, Any], percentile: float) -> float:
    return round(float(np.percentile(seconds, percentile)) * 1e3, 1)


COLUMNS = {
    "preemptions": "preemptions",
    "preempted_requests": "requests preempted",
    "tpot_ms_p50": "TPOT p50 ms",
    "tpot_ms_p99": "TPOT p99 ms",
    "ttft_s_p50": "TTFT p50 s",
    "ttft_s_p99": "TTFT p99 s",
    "good_share": "good",
    "goodput_per_s": "goodput /s",
    "cached_prompt_share": "prompt cached",
}


def mean_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Over the seeds, each metric's mean."""
    return {key: round(float(np.mean([row[key] for row in rows])), 3) for key in COLUMNS}


def table(result: dict[str, Any]) -> str:
    environment, hardware = result["environment"], result["hardware"]
    lines = [
        "# Routing policies under a long tail of thinking",
        "",
        f"`{environment['command']}` on {environment['date']}, {environment['hardware']}, {environment['versions']}.",
        f"A simulated fleet of {GANGS} gangs of {RANKS_PER_GANG} data-parallel ranks, each with "
        f"{hardware['kv_tokens']:,} KV tokens and {hardware['max_num_seqs']} seats; {result['n']} questions a replay, "
        f"means over seeds {', '.join(map(str, result['seeds']))}.",
        "A quarter are short agent calls, half chats of several turns, a quarter mathematics that thinks for thousands "
        f"of tokens. Good: TTFT within {TTFT_S:g} s, waiting in the router included, and TPOT within "
        f"{TPOT_S * 1e3:g} ms. Preemptions count the whole replay, all else its middle 80 %.",
        "",
    ]
    for apart in (True, False):
        for rate in result["per_second"]:
            title = "kinds are tenants of their own" if apart else "one tenant asks everything"
            lines += [f"## {rate:g} questions a second, {title}", ""]
            lines += ["| policy | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
            for spec in POLICIES:
                rows = [
                    row
                    for row in result["rows"]
                    if (row["policy"], row["per_second"], row["tenants_apart"]) == (spec.name, rate, apart)
                ]
                lines.append(f"| {spec.name} | " + " | ".join(f"{v:g}" for v in mean_of(rows).values()) + " |")
            lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=6000, help="questions a replay")
    parser.add_argument("--per-second", type=float, nargs="*", default=[6.0, 9.0, 12.0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    args = parser.parse_args()
    rows = []
    for apart, rate, seed, spec in itertools.product((True, False), args.per_second, args.seeds, POLICIES):
        rows.append({"tenants_apart": apart, **measure(spec, args.n, rate, seed, tenants_apart=apart)})
        print(json.dumps(rows[-1]), flush=True)
    result = {
        "environment": results.environment(),
        "n": args.n,
        "per_second": args.per_second,
        "seeds": args.seeds,
        "hardware": dataclasses.asdict(HARDWARE),
        "rows": rows,
    }
    print(results.write("policies_simulated", result, table(result)))


if __name__ == "__main__":
    main()
