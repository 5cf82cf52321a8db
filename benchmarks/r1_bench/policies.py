"""Routing policies on the same long-tailed thinking load: preemptions, TPOT, TTFT and goodput.

`python -m r1_bench.policies` runs it through the simulator, and so through the router's own dispatcher, and writes
benchmarks/results/policies_simulated_*.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from typing import Any

import numpy as np
from r1_cluster.plan import Plan
from r1_cluster.routing.spec import SHIPPED, PolicySpec
from r1_cluster.simulator import Linear, Scenario, Simulation, Slo
from r1_cluster.workload import Poisson, Workload

from r1_bench import results

# Two gangs of four ranks. Nothing is refused and budgets do not tighten: all but the policy is the same.
PLAN = """
version: r1.plan/v1
name: policies
model: {{name: deepseek-r1, checkpoint: deepseek-ai/DeepSeek-R1}}
engine: {{max_model_len: 65536, max_num_seqs: 256, max_num_batched_tokens: 2048}}
fleet: {{accelerator: H200}}
limits:
  max_queued_requests: 1000000
  max_queue_seconds: 1000000.0
  max_waiting_requests: 1024
  thinking: {{tighten_from: 1.0}}
memory: [{{pool: main, weights: 0, workspace: 0, kv_cache: 0, reserve: 0, kv_tokens: {kv_tokens}}}]
pools: [{{gangs: 2, layout: {{data_parallel_size: 4, expert_parallel_size: 4}}}}]
"""
KV_TOKENS = 400_000
# About DeepSeek-R1 with data-parallel attention on H200s: 70 kB of KV a token at 2.9 TB/s, some 10,000 prompt tokens a
# second a rank. They set the scale; the comparison does not hang on them.
STEPS = Linear(step_s=0.022, sequence_s=50e-6 / 4, kv_token_s=24e-9 / 4, prompt_token_s=100e-6, kv_tokens=0)
MIX = """
{"version": "r1.workload/v1", "name": "mixed", "classes": [
 {"name": "agent", "weight": 1, "prefix_share": 0.85, "prefix_groups": 1,
  "prompt_tokens": {"kind": "lognormal", "median": 4700, "sigma": 0.1, "high": 16384},
  "thinking_tokens": {"kind": "lognormal", "median": 180, "sigma": 0.7, "high": 30000},
  "answer_tokens": {"kind": "lognormal", "median": 120, "sigma": 0.5, "high": 2000}},
 {"name": "chat", "weight": 2, "prefix_share": 0.8, "prefix_groups": 400,
  "prompt_tokens": {"kind": "lognormal", "median": 1800, "sigma": 0.7, "high": 32768},
  "thinking_tokens": {"kind": "lognormal", "median": 600, "sigma": 0.9, "high": 30000},
  "answer_tokens": {"kind": "lognormal", "median": 400, "sigma": 0.6, "high": 2000}},
 {"name": "math", "weight": 1,
  "prompt_tokens": {"kind": "lognormal", "median": 330, "sigma": 0.4, "high": 4096},
  "thinking_tokens": {"kind": "lognormal", "median": 4500, "sigma": 1.0, "high": 30000},
  "answer_tokens": {"kind": "lognormal", "median": 500, "sigma": 0.5, "high": 2000}}]}
"""
SLO = Slo(ttft=10.0, tpot=0.075)  # what a good answer keeps to

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


def mix(per_second: float, *, tenants_apart: bool) -> Workload:
    """``tenants_apart``: each kind is a tenant of its own; else one tenant asks them all, and nothing tells them apart
    but how long they have thought."""
    told = Workload.model_validate_json(MIX)
    classes = tuple(c.model_copy(update={"tenant": c.name if tenants_apart else "everyone"}) for c in told.classes)
    return told.model_copy(update={"classes": classes, "arrivals": Poisson(rate=per_second)})


def measure(
    spec: PolicySpec, n: int, per_second: float, seed: int, *, tenants_apart: bool, kv_tokens: int = KV_TOKENS
) -> dict[str, Any]:
    started = time.process_time()
    report = Simulation(
        Plan.from_yaml(PLAN.format(kv_tokens=kv_tokens)),
        mix(per_second, tenants_apart=tenants_apart),
        requests=n,
        seed=seed,
        scenario=Scenario(slo=SLO),
        profile=STEPS,
        chooser=spec.build(),
    ).run()
    cpu = time.process_time() - started
    told = report.as_dict(cpu)
    return {
        "policy": spec.name,
        "per_second": per_second,
        "seed": seed,
        "completed": told["completed"],
        "preemptions": told["preemptions"],
        "tpot_ms_p50": round(told["tpot"]["p50"] * 1e3, 1),
        "tpot_ms_p99": round(told["tpot"]["p99"] * 1e3, 1),
        "ttft_s_p50": round(told["ttft"]["p50"], 2),
        "ttft_s_p99": round(told["ttft"]["p99"], 2),
        "good_share": told["good_share"],
        "goodput_per_s": round(told["good_share"] * per_second, 3),
        "cached_prompt_share": told["cached_prompt_share"],
        "simulated_s": round(told["simulated_seconds"]),
        "cpu_s": round(cpu, 2),
    }


COLUMNS = {
    "preemptions": "preemptions",
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
    environment = result["environment"]
    lines = [
        "# Routing policies under a long tail of thinking",
        "",
        f"`{environment['command']}` on {environment['date']}, {environment['hardware']}, {environment['versions']}.",
        f"A simulated fleet of two gangs of four data-parallel ranks, each with {KV_TOKENS:,} KV tokens and 256 seats; "
        f"{result['n']} requests a run, means over seeds {', '.join(map(str, result['seeds']))}.",
        "A quarter are short agent calls, half chats, a quarter mathematics that thinks for thousands of tokens. Good: "
        f"TTFT within {SLO.ttft:g} s, waiting in the router included, and TPOT within {SLO.tpot * 1e3:g} ms.",
        "",
    ]
    for apart in (True, False):
        for rate in result["per_second"]:
            title = "kinds are tenants of their own" if apart else "one tenant asks everything"
            lines += [f"## {rate:g} requests a second, {title}", ""]
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
    parser.add_argument("--n", type=int, default=6000, help="requests a run")
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
        "rows": rows,
    }
    print(results.write("policies_simulated", result, table(result)))


if __name__ == "__main__":
    main()
