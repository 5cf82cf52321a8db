"""The most load that a planned fleet takes within a service level, and what thinking budgets do to it.

`python -m r1_bench.capacity --write` plans R1 on 16 H200, 32 H100 and 72 GB200, simulates each plan under the router's
own code, and writes benchmarks/results/capacity_*.
"""

from __future__ import annotations

import argparse
from typing import Any

from r1_cluster.catalog import model
from r1_cluster.perf.constants import unmeasured
from r1_cluster.planner import Request, parse_fleet, plan
from r1_cluster.planner import parse_slo as parse_promise
from r1_cluster.simulator.capacity import capacity
from r1_cluster.simulator.options import parse_budgets, parse_slo
from r1_cluster.workload import load

from r1_bench import results

FLEETS = ("16xH200", "32xH100", "72xGB200")
PROMISE = "tpot_p95=50ms"  # what the plan is made for
HELD = "ttft=10s,tpot=60ms"  # what 95 of 100 requests have to keep


def measure(gpus: str, workload: str, budgets: str) -> dict[str, Any]:
    asked = load(workload)
    outcome = plan(Request(model("deepseek-r1"), parse_fleet(gpus), asked, slo=parse_promise(PROMISE)))
    if outcome.chosen is None:
        raise SystemExit(f"{gpus}: nothing is predicted of CPU ranks: name GPUs")
    rows = []
    for budget in parse_budgets(budgets):
        rows.append(capacity(outcome.plan, asked, slo=parse_slo(HELD), budget=budget).as_dict())
        print(_row(rows[-1]), flush=True)
    return {
        "environment": results.environment(),
        "gpus": gpus,
        "layout": outcome.chosen.deployment.label,
        "workload": workload,
        "planned_requests_per_second": round(outcome.chosen.most.rate, 4),
        "plan": outcome.plan.model_dump(mode="json"),
        "budgets": rows,
        "notes": [*asked.notes, *filter(None, [unmeasured(outcome.plan.fleet.accelerator)])],
    }


def page(result: dict[str, Any]) -> str:
    environment = result["environment"]
    lines = [
        f"# Capacity of {result['gpus']} under {result['workload']}",
        "",
        f"`{environment['command']}` on {environment['date']}: DeepSeek-R1 as {result['layout']}, "
        f"planned for {PROMISE}. The most requests/s at which 95 of 100 requests keep {HELD}; times are 95th "
        "percentiles at that load. Simulated with the router's own code, not measured on GPUs.",
        "",
        "| budget | requests/s | tokens/s/GPU | TTFT | TTFA | TPOT | GPU s an answer | thoughts cut | preemptions |",
        "|---" * 9 + "|",
        *(_row(row) for row in result["budgets"]),
        "",
        f"Without a budget the plan says it carries {result['planned_requests_per_second']:.3g} requests/s within "
        f"{PROMISE}, a stricter service level.",
        "",
        *(f"- {note}" for note in result["notes"]),
    ]
    return "\n".join(lines) + "\n"


def _row(row: dict[str, Any]) -> str:
    budget, best = "none" if row["budget"] is None else f"{row['budget']:,}", row["at_max"]
    if best is None:
        return f"| {budget} | never holds |" + " |" * 7
    times = f"{best['ttft']:.2f} s | {best['ttfa']:.0f} s | {best['tpot'] * 1e3:.0f} ms"
    return (
        f"| {budget} | {best['rate']:.3g} | {best['throughput_per_gpu']:,.0f} | {times} | "
        f"{row['gpu_seconds_per_answer']:.3g} | {best['thoughts_cut']:.1%} | {best['preemptions']:,} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fleets", nargs="*", default=list(FLEETS))
    parser.add_argument("--workload", default="math")
    parser.add_argument("--budgets", default="none,16k,8k,4k")
    parser.add_argument("--write", action="store_true", help="leave it in benchmarks/results")
    args = parser.parse_args()
    for gpus in args.fleets:
        result = measure(gpus, args.workload, args.budgets)
        told = page(result)
        print(told)
        if args.write:
            print(results.write(f"capacity_{gpus.lower()}", result, told))


if __name__ == "__main__":
    main()
