"""Upgrade a serving fleet to new weights under load: is any client dropped, and who answers when?

`python -m r1_bench.upgrade` follows docs/operations.md with two routers and two nano fleets, while clients ask greedy
questions of an alias one after the other: the new fleet starts beside the old one, the routers are started anew one at
a time (both plans; the alias moved; the new plan alone), the old fleet ends. "New weights" are a copy of the old under
another name, so that every answer must be the undisturbed one. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket
from typing import Any

from r1_cluster.plan import Plan
from r1_serve.nano.tasks import held_out

from r1_bench import results
from r1_bench.balancer import Balancer, Load

ALIAS = "best"
PLAN = "nano-tp1"
PATIENCE_S = 240.0
DRAIN_S = 30.0  # longer than nano thinks
RANKS_UP = "every rank is healthy"


@dataclass
class Part:
    """A child process and its log."""

    process: subprocess.Popen[bytes]
    log: Path

    def said(self, text: str) -> bool:
        return text in self.log.read_text(encoding="utf-8", errors="replace")

    def end(self) -> float:
        """SIGTERM and wait. Returns the seconds it took."""
        began = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(DRAIN_S + PATIENCE_S)
        return time.monotonic() - began


@dataclass
class Site:
    """Two routers on fixed ports and the fleets behind them, all below ``folder``."""

    folder: Path
    ports: list[tuple[int, int]]  # HTTP and gRPC of each router
    environment: dict[str, str]
    parts: dict[str, Part] = field(default_factory=dict)

    def router(self, index: int, plans: list[str], drain_s: float = DRAIN_S) -> None:
        http, grpc = self.ports[index]
        options = [word for plan in plans for word in ("--plan", str(self.folder / f"{plan}.yaml"))]
        options += ["--http-port", str(http), "--grpc-port", str(grpc)]
        self._start(f"router-{index}", ["router", *options], {"R1_DRAIN_S": str(drain_s)})

    def fleet(self, plan: str) -> None:
        routers = ",".join(f"127.0.0.1:{grpc}" for _, grpc in self.ports)
        ray = self.folder / f"ray-{plan}"
        ray.mkdir()
        command = ["serve", str(self.folder / f"{plan}.yaml"), "--address", "local", "--routers", routers]
        # Ray's own of this machine alone, as a rehearsal has it; each fleet with another token.
        private = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_ADDRESS": ""}
        private |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
        private |= {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_worker_niceness": "0"}
        private |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_COLOR_PREFIX": "0"}
        self._start(plan, [*command, "--temporary", str(ray)], private)

    def _start(self, name: str, command: list[str], more: dict[str, str]) -> None:
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "r1_serve.cli", *command],
                env={**os.environ, **self.environment, **more},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.parts[name] = Part(process, log)

    async def until(self, what: str, done: Any) -> float:
        """Seconds until ``done()`` holds. Raises RuntimeError where a part ends meanwhile, or it does not."""
        began = time.monotonic()
        while not done():
            for name, part in self.parts.items():
                if part.process.poll() is not None:
                    raise RuntimeError(f"{name} ended: {part.log.read_text(errors='replace')[-2000:]}")
            if time.monotonic() - began > PATIENCE_S:
                raise RuntimeError(f"not after {PATIENCE_S:.0f} s: {what}")
            await asyncio.sleep(0.1)
        return time.monotonic() - began


def free_ports(count: int) -> list[int]:
    sockets = [socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@contextmanager
def site() -> Iterator[Site]:
    """Plans and ports; ends every part, and hard what does not end."""
    folder = Path(tempfile.mkdtemp(prefix="r1u-", dir="/tmp"))  # Ray's sockets want a short path
    numbers = free_ports(4)
    made = Site(folder, [(numbers[0], numbers[1]), (numbers[2], numbers[3])], {"R1_FLEET_TOKEN": secrets.token_hex(32)})
    write_plans(folder)
    try:
        yield made
    finally:
        for part in made.parts.values():
            if part.process.poll() is None:
                part.process.send_signal(signal.SIGTERM)
        for part in made.parts.values():
            try:
                part.process.wait(40)
            except subprocess.TimeoutExpired:
                os.killpg(part.process.pid, signal.SIGKILL)
                part.process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def write_plans(folder: Path) -> None:
    """``old`` and ``new``, each with and without the alias; the ranks start from those without."""
    import r1_serve.nano.tasks  # what of r1_serve a client may import lies beside the weights

    weights = Path(r1_serve.nano.tasks.__file__).parents[1] / "weights"
    shutil.copytree(weights, folder / "weights")
    plan = Plan.load(PLAN)
    for name, model in (("old", {"name": "r1-nano"}), ("new", {"name": "r1-next", "checkpoint": f"{folder}/weights"})):
        for suffix, aliases in (("", ()), ("-best", (ALIAS,))):
            changed = plan.model.model_copy(update={**model, "aliases": aliases})
            made = plan.model_copy(update={"name": f"{name}{suffix}", "model": changed})
            (folder / f"{name}{suffix}.yaml").write_text(made.to_yaml(), encoding="utf-8")


async def drill(where: Site, clients: int, seed: int) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    balancer = Balancer([f"http://127.0.0.1:{http}" for http, _ in where.ports])
    questions = [problem.question for problem in held_out(16, seed)]

    async def step(name: str, **more: Any) -> None:
        steps.append({"step": name, "at_s": round(time.monotonic() - began, 1), **more, **load.since()})
        print(json.dumps(steps[-1]), flush=True)
        await asyncio.sleep(3)  # a stretch of load on what was just made

    async def routers(plans: list[str], drain_s: float = DRAIN_S) -> dict[str, Any]:
        """Each anew with these plans, one after the other."""
        drained, ready = [], []
        for index in range(len(where.ports)):
            drained.append(round(await asyncio.to_thread(where.parts[f"router-{index}"].end), 1))
            balancer.up[index] = False
            where.router(index, plans, drain_s)
            ready.append(round(await where.until(f"router {index} is ready", lambda i=index: balancer.up[i]), 1))
            await asyncio.sleep(1)
        return {"drained_s": drained, "ready_s": ready}

    for index in range(len(where.ports)):
        where.router(index, ["old-best"])
    where.fleet("old")
    async with balancer:
        await where.until("the old fleet serves", lambda: all(balancer.up))
        load = Load(balancer, ALIAS, questions)
        await load.undisturbed()
        began = time.monotonic()
        async with load.running(clients):
            await step("load on the old fleet")
            where.fleet("new")
            seconds = await where.until("the new fleet is up", lambda: where.parts["new"].said(RANKS_UP))
            await step("the new fleet runs, and no router knows it", up_s=round(seconds, 1))
            await step("routers anew: both plans", **await routers(["old-best", "new"]))
            await step("routers anew: the alias moved", **await routers(["old", "new-best"]))
            # The routers started now are the last to know the old plan: they are given no time to drain.
            await step("routers anew: the new plan alone", **await routers(["new-best"], drain_s=0))
            seconds = await asyncio.to_thread(where.parts.pop("old").end)
            await step("the old fleet has ended", ended_s=round(seconds, 1))
            await step("routers anew, without a drain", **await routers(["new-best"]))
        return {"summary": load.summary(), "steps": steps, "wrong": load.wrong}


def table(result: dict[str, Any]) -> str:
    environment = result["environment"]
    rows = [
        f"| {s['step']} | {s['at_s']} | {', '.join(f'{n} by {m}' for m, n in s['answers'].items()) or '–'} | "
        f"{s['turned_away']} | {s['told']} | "
        + "; ".join(f"{key} {value}" for key, value in s.items() if key.endswith("ed_s") or key in ("up_s", "ready_s"))
        + " |"
        for s in result["steps"]
    ]
    return "\n".join(
        [
            "# An upgrade to new weights under load",
            "",
            f"`{environment['command']}` on {environment['date']}, {environment['hardware']}, "
            f"{environment['versions']}.",
            f"Two routers, two fleets of {PLAN}, {result['clients']} clients that ask the alias greedily without a "
            "pause. A client that is turned away before its stream begins asks the other router; one whose stream is "
            "ended by name asks again.",
            "",
            "| after | s | answers since the step before | turned away | ended by name | seconds |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"`{json.dumps(result['summary'])}`",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/upgrade_cpu_*")
    args = parser.parse_args()
    with site() as where:
        result = asyncio.run(drill(where, args.clients, args.seed))
    result = {"environment": results.environment(), "clients": args.clients, **result}
    if args.write:
        print(results.write("upgrade_cpu", result, table(result)))
    print(json.dumps(result["summary"]))
    sys.exit(1 if result["summary"]["failed"] or result["summary"]["different"] else 0)


if __name__ == "__main__":
    main()
