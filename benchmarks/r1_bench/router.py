"""What the router costs: CPU per streamed token, added latency, memory, with no model behind it.

`python -m r1_bench.router` starts the real router process and drives it from this one with a synthetic fleet and
clients (``synthetic.py``). CPU time is the router's alone, from the kernel's accounts, so it holds on a loaded machine
too; latencies do not, and are the whole way from a rank to a client.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from r1_cluster.plan import Plan
from r1_serve.protos import reasoning_pb2 as north
from tokenizers import Tokenizer

from r1_bench import results
from r1_bench.peers import passthrough
from r1_bench.peers.environments import Unavailable
from r1_bench.synthetic import MAX_TOKENS, OPTIONS, Rank, Seen, SseClient, body, grpc_client

PLAN = "nano-tp1"
SEATS = 64  # of a rank
WARM_REQUESTS = 50  # before any is measured: a process's first ones pay for imports, caches and unspecialised code
PROBE_TOKENS = 2  # a first token that is the last one, too, comes after all that the end of a request costs
PEER = "vllm-router"
PACE_S = {1: 0.02, 64: 0.05, 256: 0.1, 1000: 0.2}
TICK = os.sysconf("SC_CLK_TCK")
START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Process:
    """The router under test."""

    pid: int
    http_port: int
    grpc_port: int

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def rss_mb(self) -> float:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize() / 2**20


@contextmanager
def router() -> Iterator[Process]:
    """`r1 router` on free ports."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder, "ports.json")
        command = [sys.executable, "-m", "r1_serve.cli", "router", "--plan", PLAN, "--http-port", "0"]
        log = Path(folder, "router.log")
        with log.open("wb") as output:  # a line a request: not on a terminal
            process = subprocess.Popen([*command, "--grpc-port", "0", "--announce", str(said)], stderr=output)
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not said.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the router did not start: {log.read_text(errors='replace')[-1000:]}")
                time.sleep(0.05)
            ports = json.loads(said.read_text(encoding="utf-8"))
            yield Process(process.pid, ports["http_port"], ports["grpc_port"])
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


@contextlib.asynccontextmanager
async def fleet(where: Process, streams: int, tokens: int, step_s: float) -> AsyncIterator[list[Rank]]:
    plan = Plan.load(PLAN)
    tokenizer = Tokenizer.from_file(str(_tokenizer()))
    digits = [tokenizer.encode(str(digit), add_special_tokens=False).ids[0] for digit in range(10)]
    ranks = [
        Rank(plan, f"synthetic-{n}", digits, seats=SEATS, step_s=step_s, tokens=tokens)
        for n in range(-(-streams // SEATS))
    ]
    tasks = [asyncio.create_task(rank.run(f"127.0.0.1:{where.grpc_port}")) for rank in ranks]
    try:
        yield ranks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _tokenizer() -> Path:
    from importlib.resources import files

    return Path(str(files("r1_serve"))) / "nano" / "weights" / "tokenizer.json"


async def _probe(where: Process, ranks: Sequence[Rank], seen: Seen, tokens: int = 1) -> None:
    """One short request."""
    client = SseClient(seen, body(tokens), ranks, look=False)
    await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", where.http_port)
    await client.done


async def drive(where: Process, door: str, streams: int, tokens: int, step_s: float) -> dict[str, Any]:
    """``streams`` requests of ``tokens`` each at once; figures from the moment all have their first token."""
    seen = Seen()
    async with contextlib.AsyncExitStack() as stack:
        ranks = await stack.enter_async_context(fleet(where, streams, tokens, step_s))
        for _ in range(WARM_REQUESTS):
            await _probe(where, ranks, Seen())
        opened, ended = await _open(stack, where, door, streams, seen, ranks)
        await opened
        before, cpu, started = sum(rank.tokens for rank in ranks), where.cpu_s(), time.monotonic()
        for rank in ranks:
            rank.go()
        rss, probes = where.rss_mb(), Seen()
        while not ended.done():
            await asyncio.wait([ended], timeout=0.2)
            rss = max(rss, where.rss_mb())
            if step_s:  # what a new request meets while the others stream
                await _probe(where, ranks, probes, PROBE_TOKENS)
        seconds, used = time.monotonic() - started, where.cpu_s() - cpu
        count = sum(rank.tokens for rank in ranks) - before - PROBE_TOKENS * len(probes.first_token)
        if seen.broken or count != streams * (tokens - 1):
            raise RuntimeError(f"{seen.broken} streams broke, {count} of {streams * (tokens - 1)} tokens were sent")
    first = sorted(probes.first_token or seen.first_token)
    transit = sorted(seen.transit) if step_s else []
    return {
        "door": door,
        "streams": streams,
        "step_ms": round(step_s * 1e3),
        "tokens": count,
        "us_per_token": round(used / count * 1e6, 1),
        "tokens_per_s_per_core": round(count / used) if used else None,
        "router_busy": round(used / seconds, 2),
        "tokens_per_piece": round(count / seen.pieces, 2) if seen.pieces else None,
        "ttft_ms_p50": _ms(statistics.median(first)),
        "ttft_ms_p99": _ms(first[int(len(first) * 0.99)]),
        "transit_ms_p50": _ms(statistics.median(transit)) if transit else None,
        "transit_ms_p99": _ms(transit[int(len(transit) * 0.99)]) if transit else None,
        "rss_mb": round(rss, 1),
    }


async def _open(
    stack: contextlib.AsyncExitStack,
    where: Process,
    door: str,
    streams: int,
    seen: Seen,
    ranks: Sequence[Rank],
) -> tuple[asyncio.Future[Any], asyncio.Future[Any]]:
    """Open all streams, a few at a time as clients come; futures of the last first token and of the last end."""
    loop = asyncio.get_running_loop()
    firsts: list[asyncio.Future[Any]] = []
    ends: list[asyncio.Future[Any]] = []
    while len(ends) < streams:
        if door == "sse":
            made = SseClient(seen, body(), ranks, look=ranks[0].paced)
            await loop.create_connection(lambda made=made: made, "127.0.0.1", where.http_port)  # type: ignore[misc]
            firsts.append(made.first)
            ends.append(made.done)
            await made.first
        else:
            if len(ends) % SEATS == 0:
                options = (*OPTIONS, ("grpc.use_local_subchannel_pool", 1))
                channel = grpc.aio.insecure_channel(f"127.0.0.1:{where.grpc_port}", options=options)
                await stack.enter_async_context(channel)
            request = north.ChatRequest(
                messages=[north.Message(role="user", content="x")], max_tokens=MAX_TOKENS, loop_guard=False
            )
            first = asyncio.Event()
            ends.append(asyncio.create_task(grpc_client(channel, request, seen, ranks, first)))
            await first.wait()
    return asyncio.gather(*firsts), asyncio.gather(*ends)


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)


def table(result: dict[str, Any]) -> str:
    environment = result["environment"]
    columns = list(result["rows"][0])
    lines = [
        "# What the router costs",
        "",
        f"`{environment['command']}` on {environment['date']}, {environment['hardware']}, {environment['versions']}, "
        f"load average {result['load_average']}.",
        "",
        f"One router process, synthetic ranks of {SEATS} seats, one token of each request a step. CPU is the router's "
        "own (user and system). step_ms 0: as fast as the router takes frames. Transit: from the rank's write to the "
        f"client's read. Doors take turns; of a door's runs the one with the median CPU a token is shown. Before "
        f"each run of ours the router answers {WARM_REQUESTS} short requests.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
    ]
    lines += ["| " + " | ".join(str(row[column]) for column in columns) + " |" for row in result["rows"]]
    return "\n".join([*lines, "", f"`{json.dumps(result['summary'])}`"]) + "\n"


def median(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The run whose CPU a token is the median, with that of all of them."""
    ran = sorted(runs, key=lambda run: run["us_per_token"])
    return {**ran[len(ran) // 2], "us_of_all": [run["us_per_token"] for run in ran]}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def row(door: str, streams: int, paced: bool) -> dict[str, Any]:
        fits = [r for r in rows if (r["door"], r["streams"], r["step_ms"] > 0) == (door, streams, paced)]
        return fits[0] if fits else {}

    sse, paced = row("sse", 256, False), row("sse", 1, True)
    return {
        "sse_us_per_token": sse.get("us_per_token"),
        "grpc_us_per_token": row("grpc", 256, False).get("us_per_token"),
        "tokens_per_s_per_core": sse.get("tokens_per_s_per_core"),
        "added_ttft_ms_p50": paced.get("ttft_ms_p50"),
        "grpc_added_itl_ms_p50": row("grpc", 256, True).get("transit_ms_p50"),
        "mb_at_1000_streams": row("sse", 1000, True).get("rss_mb"),
        "vllm_router_us_per_chunk": row("vllm-router", 256, False).get("us_per_token"),
    }


def _run(door: str, streams: int, tokens: int, step_s: float) -> dict[str, Any]:
    """One row, with a router of its own. Raises Unavailable where there is no vllm-router."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if door == PEER:
            return runner.run(passthrough.drive(streams, tokens, step_s))
        with router() as where:
            return runner.run(drive(where, door, streams, tokens, step_s))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 64, 256, 1000])
    parser.add_argument("--doors", nargs="*", default=["sse", PEER, "grpc"])
    parser.add_argument("--tokens", type=int, default=200_000, help="of each run at full speed")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each paced run")
    parser.add_argument("--rounds", type=int, default=3, help="doors by turns; a row is the median run's")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/router_cpu_*")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for streams in args.streams:
        for step_s in (0.0, PACE_S.get(streams, 0.1)):
            each = args.tokens // streams if step_s == 0 else args.seconds / step_s
            each = max(20, min(1400, int(each)))
            runs: dict[str, list[dict[str, Any]]] = {}
            for door in args.doors * args.rounds:
                try:
                    runs.setdefault(door, []).append(_run(door, streams, each, step_s))
                except Unavailable as e:
                    print(f"skipped: {e}", file=sys.stderr, flush=True)
            for ran in runs.values():
                rows.append(median(ran))
                print(json.dumps(rows[-1]), flush=True)
    result = {
        "environment": results.environment(),
        "load_average": os.getloadavg()[0],
        "summary": summary(rows),
        "rows": rows,
    }
    if args.write:
        print(results.write("router_cpu", result, table(result)))
    print(json.dumps(result["summary"]))


if __name__ == "__main__":
    main()
