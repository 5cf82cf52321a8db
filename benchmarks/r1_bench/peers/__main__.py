"""``python -m r1_bench.peers``: tokens/s, TTFT and ITL of the whole nano stack and of its peers, in one run.

All servers are up at once and take turns, so that what else the machine does meets them alike; figures are medians over
the rounds, ratios are of these. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from r1_serve.nano.tasks import held_out

from r1_bench import results
from r1_bench.peers import load, servers
from r1_bench.peers.environments import Unavailable

OURS, VLLM, ROUTER, RAY, DIRECT = "ours", "vllm", "vllm-router", "ray-serve-llm", "ray-serve-llm-direct"
NAMES = (OURS, VLLM, ROUTER, RAY, DIRECT)
Row = dict[str, Any]


def start(name: str, stack: contextlib.ExitStack, running: Mapping[str, servers.Server]) -> servers.Server:
    """Raises Unavailable."""
    makers: dict[str, Callable[[], AbstractContextManager[servers.Server]]] = {
        OURS: servers.ours,
        VLLM: servers.vllm,
        ROUTER: lambda: servers.vllm_router(running[VLLM].port),
        RAY: lambda: servers.ray_serve_llm(direct=False),
        DIRECT: lambda: servers.ray_serve_llm(direct=True),
    }
    return stack.enter_context(makers[name]())


def measure(server: servers.Server, prompts: Sequence[str], streams: int, number: int) -> Row:
    import uvloop

    cpu = server.cpu_s()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(load.run(server.port, "r1-nano", prompts, streams))
    return {
        "round": number,
        "server": server.name,
        **vars(found),
        "cpu_us_per_token": round((server.cpu_s() - cpu) / found.tokens * 1e6, 1),
    }


def medians(rows: Sequence[Row]) -> list[Row]:
    """One row a server and number of streams, over the rounds."""
    keys = dict.fromkeys((row["server"], row["streams"]) for row in rows)
    made = []
    for server, streams in keys:
        own = [row for row in rows if (row["server"], row["streams"]) == (server, streams)]
        figures = ("tokens", "tokens_per_s", "ttft_ms", "itl_ms", "cpu_us_per_token")
        made.append(
            {"server": server, "streams": streams}
            | {figure: round(statistics.median(row[figure] for row in own), 3) for figure in figures}
        )
    return made


def summary(rows: Sequence[Row], streams: int) -> dict[str, float | None]:
    """Ratios of medians; None where a peer was not to be had."""
    table = {(row["server"], row["streams"]): row for row in medians(rows)}

    def ratio(server: str, figure: str, at: int) -> float | None:
        ours, base = table.get((server, at)), table.get((VLLM, at))
        return round(ours[figure] / base[figure], 3) if ours and base else None

    return {
        "ours_over_vllm": ratio(OURS, "tokens_per_s", streams),
        "vllm_router_over_vllm": ratio(ROUTER, "tokens_per_s", streams),
        "ray_serve_llm_over_vllm": ratio(RAY, "tokens_per_s", streams),
        "ray_serve_llm_direct_over_vllm": ratio(DIRECT, "tokens_per_s", streams),
        "ours_ttft_over_vllm": ratio(OURS, "ttft_ms", streams),
        "ours_itl_over_vllm_at_1": ratio(OURS, "itl_ms", 1),
        "ours_cpu_over_vllm": ratio(OURS, "cpu_us_per_token", streams),
    }


def page(result: dict[str, Any]) -> str:
    environment, rows = result["environment"], medians(result["rows"])
    columns = list(rows[0])
    lines = [
        "# The whole nano stack and its peers",
        "",
        f"`{environment['command']}` on {environment['date']}, {environment['hardware']}, {environment['versions']}, "
        f"load average before {result['load_average_before']}.",
        "",
        "The same checkpoint, engine settings and prompts (greedy, so nearly the same work) on every server; all are "
        f"up at once and take turns over {result['rounds']} rounds; medians. Tokens/s count while all streams are "
        "busy; TTFT and ITL are medians over requests; CPU is that of all a server's processes (vllm-router's without "
        "the vLLM behind it).",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(str(row[column]) for column in columns) + " |" for row in rows),
        "",
        *(f"- {name} was left out from some point on: {reason}" for name, reason in result["skipped"].items()),
        f"`{json.dumps(result['summary'])}`",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=256, help="of a round at --streams; a twentieth of it alone")
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES, help="vllm is always measured")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/peers_cpu_*")
    args = parser.parse_args()
    prompts = [problem.question for problem in held_out(args.prompts, seed=7)]
    before = round(os.getloadavg()[0], 2)
    running: dict[str, servers.Server] = {}
    skipped: dict[str, str] = {}
    rows: list[Row] = []

    def skip(name: str, why: Exception) -> None:
        running.pop(name, None)
        skipped[name] = " ".join(str(why).split())
        print(f"skipped: {name}: {skipped[name]}", file=sys.stderr, flush=True)

    told_to_end: list[int] = []  # acted on between measurements: an exception within one would look like its server's
    signal.signal(signal.SIGTERM, lambda number, _: told_to_end.append(number))
    with contextlib.ExitStack() as stack:
        for name in dict.fromkeys((VLLM, *args.only)):
            if told_to_end:
                sys.exit("ended by SIGTERM: nothing is written")  # the servers end with us
            try:
                running[name] = start(name, stack, running)
                measure(running[name], prompts[: args.streams], args.streams, 0)  # pages, caches, lazy imports
            except (Unavailable, load.LoadError) as e:
                skip(name, e)
        for number in range(1, args.rounds + 1):
            for streams, asked in ((1, prompts[: max(1, len(prompts) // 20)]), (args.streams, prompts)):
                for name in list(running):
                    if told_to_end:
                        sys.exit("ended by SIGTERM: nothing is written")  # the servers end with us
                    try:
                        rows.append(measure(running[name], asked, streams, number))
                    except load.LoadError as e:
                        skip(name, e)
                    else:
                        print(json.dumps(rows[-1]), flush=True)
    result = {
        "environment": results.environment(),
        "load_average_before": before,
        "rounds": args.rounds,
        "summary": summary(rows, args.streams),
        "skipped": skipped,
        "rows": rows,
    }
    if args.write:
        print(results.write("peers_cpu", result, page(result)))
    print(json.dumps(result["summary"]))


if __name__ == "__main__":
    main()
