"""What simulating costs as the fleet grows: seconds a request and a token, and memory, from 8 to 10,000 GPUs, and
whether a million requests take more of either.

`python -m r1_bench.scale` runs each size in a process of its own and writes benchmarks/results/simulator_scale_*.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

from r1_cluster.plan import Plan
from r1_cluster.simulator import Simulation
from r1_cluster.workload import load

from r1_bench import results

PLAN = """
version: r1.plan/v1
name: r1-tp8-h200
model: {name: deepseek-r1, checkpoint: deepseek-ai/DeepSeek-R1}
engine: {max_model_len: 65536, max_num_seqs: 256, max_num_batched_tokens: 8192}
fleet: {accelerator: H200}
pools: [{layout: {tensor_parallel_size: 8, expert_parallel_size: 8}}]
"""
SIZES = {8: 4_000, 80: 10_000, 1_000: 50_000, 10_000: 150_000}  # GPUs: requests
LONG = (1_000, 1_000_000)  # the same, with the oldest forecasts alone: as `r1 simulate` does it for such a fleet
COLUMNS = {
    "gpus": "GPUs",
    "ranks": "ranks",
    "requests": "requests",
    "refresh_s": "refresh s",
    "cpu_s": "CPU s",
    "us_per_request": "µs a request",
    "ns_per_token": "ns an output token",
    "speedup": "simulated s per CPU s",
    "rss_mb": "memory MB",
    "throughput_per_gpu": "tokens/s/GPU",
    "ttft_p99": "TTFT p99 s",
    "preemptions": "preemptions",
}


def measure(plan: Plan, gpus: int, requests: int, per_gpu: float, refresh_s: float, workload: str) -> dict[str, Any]:
    gangs = max(1, gpus // plan.pools[0].layout.accelerators)
    actual = gangs * plan.pools[0].layout.accelerators
    begun = time.process_time()
    simulation = Simulation(
        plan, load(workload).at_rate(per_gpu * actual), requests=requests, gangs=gangs, refresh_s=refresh_s
    )
    report = simulation.run()
    cpu = time.process_time() - begun
    told = report.as_dict(cpu)
    return {
        "gpus": actual,
        "ranks": gangs * plan.pools[0].layout.data_parallel_size,
        "requests": requests,
        "refresh_s": refresh_s,
        "cpu_s": round(cpu, 2),
        "us_per_request": round(cpu / requests * 1e6, 1),
        "ns_per_token": round(cpu / report.metrics.output_tokens * 1e9, 1),
        "speedup": round(report.simulated_seconds / cpu, 2),
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "throughput_per_gpu": told["throughput_per_gpu"],
        "ttft_p99": told["ttft"]["p99"],
        "preemptions": told["preemptions"],
        "refused": told["refused"],
    }


def combinations(sizes: list[int], requests: int | None, refresh: list[float]) -> list[tuple[int, int, float]]:
    """GPUs, requests and refresh seconds of each run. ``requests``: instead of each size's own, and of the long run."""
    runs = [(size, requests or SIZES.get(size, 20_000), each) for size in sizes for each in refresh]
    return runs if requests or LONG[0] not in sizes else [*runs, (*LONG, max(refresh))]


def table(result: dict[str, Any]) -> str:
    environment = result["environment"]
    lines = [
        "# What simulating a fleet costs",
        "",
        f"`{environment['command']}` on {environment['date']}, {environment['hardware']}, {environment['versions']}.",
        f"Plan {result['plan']} ({result['layout']}), {result['workload']} at {result['per_gpu']:g} requests/s a GPU, "
        "one core. CPU seconds of the process, start to end; the machine was shared with other work. "
        "`refresh s`: how old the router's KV forecasts may get (live: 1).",
        "",
        "| " + " | ".join(COLUMNS.values()) + " |",
        "|---" * len(COLUMNS) + "|",
    ]
    lines += ["| " + " | ".join(f"{row[key]:,}" for key in COLUMNS) + " |" for row in result["rows"]]
    return "\n".join([*lines, "", *result.get("notes", []), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", help="default: R1 as TP8 on H200s")
    parser.add_argument("--workload", default="chat")
    parser.add_argument("--per-gpu", type=float, default=0.3, help="requests/s a GPU")
    parser.add_argument("--refresh", type=float, nargs="+", default=[1.0, 10.0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="GPUs")
    parser.add_argument("--requests", type=int, help="instead of each size's own")
    parser.add_argument("--one", action="store_true", help="print the first combination as JSON; write nothing")
    args = parser.parse_args()
    plan = Plan.load(args.plan) if args.plan else Plan.from_yaml(PLAN)
    runs = combinations(args.sizes, args.requests, args.refresh)
    if args.one:
        gpus, requests, refresh = runs[0]
        print(json.dumps(measure(plan, gpus, requests, args.per_gpu, refresh, args.workload)))
        return
    rows = []
    for gpus, requests, refresh in runs:
        command = [sys.executable, "-m", "r1_bench.scale", "--one", "--workload", args.workload]
        command += ["--plan", args.plan] if args.plan else []
        command += ["--per-gpu", str(args.per_gpu), "--refresh", str(refresh)]
        command += ["--sizes", str(gpus), "--requests", str(requests)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout))
        print(done.stdout, end="", flush=True)
    result = {
        "environment": results.environment(),
        "plan": plan.name,
        "layout": str(plan.pools[0].layout),
        "workload": args.workload,
        "per_gpu": args.per_gpu,
        "rows": rows,
    }
    print(results.write("simulator_scale_cpu", result, table(result)))


if __name__ == "__main__":
    main()
