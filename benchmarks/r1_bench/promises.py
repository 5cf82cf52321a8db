"""What plans promise beside what the simulator, which runs the router's own code, does with them, up to full load.

`python -m r1_bench.promises` writes benchmarks/results/plan_promises_simulated_*. About ten minutes on one slow core.
"""

from __future__ import annotations

import argparse
from typing import Any

from r1_cluster.catalog import model
from r1_cluster.plan import Plan
from r1_cluster.planner import Request, Slo, parse_fleet, parse_slo, plan
from r1_cluster.planner.planner import PoolChoice
from r1_cluster.planner.search import Candidate, at_rate
from r1_cluster.simulator import Simulation
from r1_cluster.workload import Workload, load

from r1_bench import results

CASES: tuple[tuple[str, str, str, PoolChoice, int], ...] = (  # the last is drafts a step
    ("8xH200", "chat", "ttft_p95=1s,tpot_p95=30ms", "unified", 0),
    ("16xH200", "chat", "ttft_p95=2s,tpot_p95=50ms", "unified", 0),
    ("16xH200", "chat", "ttft_p95=1s,tpot_p95=50ms", "separate", 0),
    ("16xH200", "chat", "ttft_p95=1500ms,tpot_p95=80ms", "separate", 0),
    ("8xH200", "agent", "ttft_p95=3s,tpot_p95=60ms", "unified", 0),
    ("32xH200", "agent", "ttft_p95=3s,tpot_p95=50ms", "unified", 0),
    ("32xH200", "agent", "ttft_p95=3s,tpot_p95=50ms", "separate", 0),
    ("16xH200", "math", "tpot_p95=50ms", "unified", 0),
    ("32xH100", "math", "tpot_p95=50ms", "unified", 0),
    ("8xH200", "chat", "ttft_p95=1s,tpot_p95=30ms", "unified", 1),
    ("16xH200", "math", "tpot_p95=50ms", "unified", 1),
    ("32xH200", "agent", "ttft_p95=3s,tpot_p95=50ms", "separate", 1),
)
SHARES = (0.7, 0.85, 0.95, 1.0)
FILLS, LEAST = 9, 8000  # times what runs at once, and requests at least
ROUNDING = 1.01  # of the simulator's percentiles


def compare(made: Plan, chosen: Candidate, workload: Workload, slo: Slo, share: float, seed: int) -> dict[str, Any]:
    """A plan at ``share`` of what it says it carries; judged on requests that meet a full fleet."""
    rate = chosen.most.rate * share
    said = at_rate(chosen, rate)
    count = max(LEAST, int(FILLS * said.running * chosen.deployment.gangs))
    judged = range(int(0.4 * count), int(0.85 * count))
    run = Simulation(made, workload.at_rate(rate), requests=count, seed=seed, judged=judged).run()
    told = run.as_dict(0.0)
    row: dict[str, Any] = {"share": share, "rate": round(rate, 4), "requests": count, "refused": told["refused"]}
    for name in ("ttft_p95", "tpot_mean", "tpot_p95", "ttfa_p95"):
        what, _, part = name.partition("_")
        row[name] = {"planned": round(getattr(said, name), 5), "simulated": told[what][part]}
    row["kept"] = all(
        row[name]["simulated"] <= limit * ROUNDING for name, limit in vars(slo).items() if limit is not None
    )
    return row


def table(result: dict[str, Any]) -> str:
    environment = result["environment"]
    lines = [
        "# What plans promise, and what the simulator does with them",
        "",
        f"`{environment['command']}` on {environment['date']}, DeepSeek-R1.",
        "A load of 1 is the most requests/s at which the plan says it holds its service level. Planned / simulated;",
        "simulated times are those of requests that meet a full fleet. Nothing here is measured on GPUs.",
        "",
        "| plan | service level | load | requests/s "
        "| TTFT p95, s | TPOT mean, ms | TPOT p95, ms | TTFA p95, s | kept |",
        "|---" * 9 + "|",
    ]
    for case in result["cases"]:
        for row in case["rows"]:
            cells = [
                f"{row[name]['planned'] * unit:.{digits}f} / {row[name]['simulated'] * unit:.{digits}f}"
                for name, unit, digits in (
                    ("ttft_p95", 1, 2),
                    ("tpot_mean", 1e3, 1),
                    ("tpot_p95", 1e3, 1),
                    ("ttfa_p95", 1, 0),
                )
            ]
            kept = "yes" if row["kept"] else "**no**"
            name = f"{case['gpus']} {case['workload']}: {case['layout']}"
            lines.append(
                f"| {name} | {case['slo']} | {row['share']} | {row['rate']:.3g} | {' | '.join(cells)} | {kept} |"
            )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shares", type=float, nargs="*", default=list(SHARES))
    parser.add_argument("--write", action="store_true", help="leave it in benchmarks/results")
    args = parser.parse_args()
    cases = []
    for gpus, name, slo, pools, drafts in CASES:
        workload, wanted, fleet = load(name), parse_slo(slo), parse_fleet(gpus)
        asked = Request(model("deepseek-r1"), fleet, workload, slo=wanted, pools=pools, drafts=(drafts,))
        outcome = plan(asked)
        if outcome.chosen is None:
            continue  # CPU ranks, of which nothing is predicted
        rows = [compare(outcome.plan, outcome.chosen, workload, wanted, share, args.seed) for share in args.shares]
        case = {"gpus": gpus, "workload": name, "slo": slo, "layout": outcome.chosen.deployment.label, "rows": rows}
        cases.append(case)
        print(*table({"environment": results.environment(), "cases": [case]}).splitlines()[-len(rows) :], sep="\n")
    result = {"environment": results.environment(), "cases": cases}
    if args.write:
        print(results.write("plan_promises_simulated", result, table(result)))


if __name__ == "__main__":
    main()
