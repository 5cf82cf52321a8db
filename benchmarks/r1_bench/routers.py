"""Routers as an operator starts them: several on one fleet, each with settings of its own, or with ranks of ours.

With several on one fleet every rank is attached to all of them, and what differs is the router alone. Ask one at a
time: an idle router costs the ranks a beat a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from r1_bench.fleet import END_TIMEOUT_S, START_TIMEOUT_S, FleetError, end_with_parent

_POLL_S = 0.1


@dataclass(frozen=True)
class Router:
    http_port: int
    grpc_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"


def private_ray() -> dict[str, str]:
    """Environment of a Ray of this machine alone, as a rehearsal has it, with a token nobody else has."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ADDRESS": "",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_COLOR_PREFIX": "0",
    }


@contextmanager
def routers(plan: str, settings: Mapping[str, Mapping[str, str]], *options: str) -> Iterator[dict[str, Router]]:
    """A router for each name, on free ports, until the block ends; ``settings``: environment of each; ``options`` of
    ``r1 router``. Raises FleetError."""
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder, started = Path(temporary), {}
        for name, environment in settings.items():
            command = ["router", "--plan", plan, "--http-port", "0", "--grpc-port", "0", *options]
            command += ["--announce", str(folder / f"{name}.json")]
            started[name] = stack.enter_context(_r1(command, environment, folder / f"{name}.log"))
        for name, check in started.items():
            _until((folder / f"{name}.json").exists, check)
        yield {name: Router(**_ports(folder / f"{name}.json")) for name in settings}


@contextmanager
def side_by_side(plan: Path, settings: Mapping[str, Mapping[str, str]]) -> Iterator[dict[str, Router]]:
    """As ``routers``, with the ranks of ``plan`` attached to all of them."""
    # Ray's sockets want a short path.
    with (
        routers(str(plan), settings) as found,
        tempfile.TemporaryDirectory(prefix="r1-", dir="/tmp", ignore_cleanup_errors=True) as ray,
    ):
        targets = ",".join(router.grpc for router in found.values())
        command = ["serve", str(plan), "--address", "local", "--routers", targets, "--temporary", ray]
        with _r1(command, private_ray(), Path(ray) / "fleet.log") as check:
            _until(lambda: all(map(_ready, found.values())), check)
            yield found


@contextmanager
def _r1(command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[Callable[[], None]]:
    """The ``r1`` command until the block ends. Yields what raises FleetError once it has ended by itself."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "r1_serve.cli", *command],
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )

    def check() -> None:
        if process.poll() is not None:
            raise FleetError(f"r1 {command[0]} ended:\n{log.read_text(errors='replace')[-2000:]}")

    try:
        yield check
    finally:
        process.terminate()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _ports(announced: Path) -> dict[str, int]:
    said = json.loads(announced.read_text(encoding="utf-8"))
    return {name: said[name] for name in ("http_port", "grpc_port")}


def _ready(router: Router) -> bool:
    try:
        return httpx.get(f"{router.url}/ready", timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _until(done: Callable[[], bool], check: Callable[[], None]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not done():
        check()
        if time.monotonic() > deadline:
            raise FleetError(f"not ready after {START_TIMEOUT_S:.0f} s")
        time.sleep(_POLL_S)
