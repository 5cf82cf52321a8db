"""Quotas and fair shares over real router processes: do several let through what one would?

`python -m r1_bench.quotas` starts one router, two routers, and one with two processes, on ranks without a model that
answer after a while. Two tenants ask for more than their tokens a minute, nine of ten requests at the first router;
then two tenants without quotas, one of thrice the weight, ask for more than the ranks have seats, and where there are
two routers do so once more, each tenant at one. Ratios only: how fast the machine is does not matter. The last line is
one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from r1_cluster.plan import Plan

from r1_bench import results
from r1_bench.answering import AnsweringRank
from r1_bench.routers import Router, routers

PLAN = "nano-tp1"
PER_MINUTE = {"large": 12_000, "small": 4_000}
WEIGHTS = {"heavy": 3, "light": 1}
SETUPS: Mapping[str, tuple[int, int]] = {"one router": (1, 1), "two routers": (2, 1), "two processes": (1, 2)}
SKEW = (0,) * 9 + (1,)  # which router, of two
SKEWED = dict.fromkeys((*PER_MINUTE, *WEIGHTS), SKEW)
APART = {"heavy": (0,), "light": (1,)}
CLIENTS = 12  # of each tenant, each of which asks again as soon as it may
PAUSE_S = 0.05  # of a client that was refused
PATIENCE_S = 60.0
RUSH_S = 3.0  # shares are counted from then on, and not after the clients' time: what is still queued is then served

Routes = Mapping[str, Sequence[int]]  # the routers that a tenant's requests go to in turn


def tenants() -> str:
    """tenants.yaml; a tenant's key is its name."""
    more: dict[str, dict[str, Any]] = {name: {"weight": weight} for name, weight in WEIGHTS.items()}
    more |= {name: {"quota": {"tokens_per_minute": tokens}} for name, tokens in PER_MINUTE.items()}
    listed = [
        {"name": name, "keys": [hashlib.sha256(name.encode()).hexdigest()], **some} for name, some in more.items()
    ]
    return json.dumps({"tenants": listed})


@dataclass
class Served:
    """What clients got: (when in seconds, tenant, tokens) of each answer, and refusals by tenant."""

    answers: list[tuple[float, str, int]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)

    def tokens(self, tenant: str, since: float = 0.0, until: float = math.inf) -> int:
        return sum(tokens for at, name, tokens in self.answers if name == tenant and since <= at < until)


async def load(urls: Sequence[str], names: Sequence[str], seconds: float, routes: Routes) -> Served:
    """Each tenant's clients ask for so long, by its ``routes``. A connection a request: the kernel chooses among
    processes."""
    served, began = Served(), time.monotonic()

    async def client(http: httpx.AsyncClient, name: str, which: Iterator[str]) -> None:
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 60}
        while time.monotonic() < began + seconds:
            url, headers = f"{next(which)}/v1/chat/completions", {"authorization": f"Bearer {name}"}
            answer = await http.post(url, json=body, headers=headers)
            if answer.status_code == 200:
                served.answers.append((time.monotonic() - began, name, answer.json()["usage"]["total_tokens"]))
            elif answer.status_code == 429:
                served.refused[name] += 1
                await asyncio.sleep(PAUSE_S)
            else:
                raise RuntimeError(f"{answer.status_code}: {answer.text[:200]}")

    turns = {name: itertools.cycle([urls[i % len(urls)] for i in routes[name]]) for name in names}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S, limits=limits) as http:
        await asyncio.gather(*(client(http, name, turns[name]) for name in names for _ in range(CLIENTS)))
    return served


async def attached(ranks: Sequence[AnsweringRank], streams: int) -> None:
    """Until every rank has a stream to every router process, and these have told each other of their quotas."""
    async with asyncio.timeout(PATIENCE_S):
        for rank in ranks:
            await rank.attached(streams)
            await rank.passed_on(2 * streams if streams > 1 else 0)


async def phase(
    found: Sequence[Router], streams: int, *, seats: int, names: Sequence[str], seconds: float, routes: Routes
) -> Served:
    ranks = [AnsweringRank(Plan.load(PLAN), f"answering-{n}", seats=seats, service_s=0.2) for n in range(2)]
    tasks = [asyncio.create_task(rank.run([router.grpc for router in found])) for rank in ranks]
    try:
        await attached(ranks, streams)
        return await load([router.url for router in found], names, seconds, routes)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def measure(name: str, seconds: float) -> dict[str, Any]:
    """One setup, each phase with routers of its own."""
    count, processes = SETUPS[name]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tenants.yaml"
        file.write_text(tenants(), encoding="utf-8")
        settings = {f"router-{n}": {"R1_TENANTS": str(file)} for n in range(count)}

        def run(seats: int, names: Sequence[str], routes: Routes = SKEWED) -> Served:
            with routers(PLAN, settings, "--processes", str(processes)) as found:
                several, streams = list(found.values()), count * processes
                return asyncio.run(phase(several, streams, seats=seats, names=names, seconds=seconds, routes=routes))

        quotas, shares = run(64, list(PER_MINUTE)), run(2, list(WEIGHTS))
        apart = run(2, list(WEIGHTS), APART) if count > 1 else None
    half = seconds / 2
    return {
        "setup": name,
        # A full minute's tokens lie ready at the start.
        "granted_over_quota": {
            tenant: round(quotas.tokens(tenant) / (per_minute * (1 + seconds / 60)), 3)
            for tenant, per_minute in PER_MINUTE.items()
        },
        "steady_over_quota": {
            tenant: round(quotas.tokens(tenant, since=half) / (per_minute * half / 60), 3)
            for tenant, per_minute in PER_MINUTE.items()
        },
        "refused": dict(quotas.refused),
        "shares": share(shares, seconds),
        "shares_apart": None if apart is None else share(apart, seconds),
    }


def share(served: Served, seconds: float) -> dict[str, float]:
    """Both tenants' tokens, and the heavy one's over the light one's over their weights."""
    tokens = {tenant: served.tokens(tenant, RUSH_S, seconds) for tenant in WEIGHTS}
    exact = WEIGHTS["heavy"] / WEIGHTS["light"]
    return {**tokens, "over_weight": round(tokens["heavy"] / max(1, tokens["light"]) / exact, 3)}


def table(result: dict[str, Any]) -> str:
    environment = result["environment"]
    lines = [
        "# Quotas and fair shares over router processes",
        "",
        f"`{environment['command']}` on {environment['date']}, {environment['hardware']}, {environment['versions']}.",
        f"Two ranks without a model. Quotas: tenants of {PER_MINUTE['large']:,} and {PER_MINUTE['small']:,} tokens a "
        f"minute ask for more during {result['seconds']:g} s, of two routers nine of ten requests at the first; what "
        "was granted over what one exact bucket would grant, from the start (a minute's tokens lie ready) and in the "
        "second half. Shares: two tenants without a quota, one of thrice the weight, ask for more than four seats; the "
        "tokens they got over their weights, 1 is exact; once over the same routers, once each at a router of its own.",
        "",
        "| setup | large | small | large, second half | small, second half | share by weight | a router each |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [*row["granted_over_quota"].values(), *row["steady_over_quota"].values()]
        cells += [shares["over_weight"] if shares else None for shares in (row["shares"], row["shares_apart"])]
        shown = ["–" if cell is None else f"{cell:g}" for cell in cells]
        lines.append(f"| {row['setup']} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def worst(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The largest distance from exact."""
    return {
        "quota": max(abs(ratio - 1) for row in rows for ratio in row["granted_over_quota"].values()),
        "steady": max(abs(ratio - 1) for row in rows for ratio in row["steady_over_quota"].values()),
        "share": max(
            abs(some["over_weight"] - 1) for row in rows for some in (row["shares"], row["shares_apart"]) if some
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40.0, help="of each phase, two or three a setup")
    parser.add_argument("--setups", nargs="*", default=list(SETUPS), choices=list(SETUPS))
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/quotas_cpu_*")
    args = parser.parse_args()
    rows = []
    for name in args.setups:
        rows.append(measure(name, args.seconds))
        print(json.dumps(rows[-1]), flush=True)
    far = {name: round(value, 3) for name, value in worst(rows).items()}
    result = {"environment": results.environment(), "seconds": args.seconds, "worst": far, "rows": rows}
    if args.write:
        print(results.write("quotas_cpu", result, table(result)))
    print(json.dumps({"worst": far}))


if __name__ == "__main__":
    main()
