"""The containers of values-nano.yaml as processes: their own commands, arguments and environment serve and let go.

The router has two processes, and the fleet a token from a Secret.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest
from r1_bench.chart.local import Local
from r1_bench.chart.render import merge, values_file
from r1_serve.launch.processes import Family
from r1_serve.protos.fleet_pb2_grpc import FleetStub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

CHART = Path(__file__).parents[2] / "helm"
PROCESSES = 2
MORE = {"router": {"processes": PROCESSES}, "fleetToken": {"existingSecret": "fleet"}}
TOKEN = "f" * 32


class Release:
    """The parts of one release, started as a cluster would: each when what it needs is there."""

    def __init__(self, local: Local) -> None:
        self.local = local
        self.parts: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        self.parts["head"] = self.local.head()
        self.until(lambda: self.local.probe("head", "readinessProbe") == 200)
        self.parts["worker"] = self.local.worker()
        self.parts["router"] = self.local.router()
        self.until(lambda: self.local.probe("worker", "startupProbe") == 200)
        self.until(lambda: self.local.probe("router", "startupProbe") == 200)
        self.local.deploy()

    def until(self, done: Callable[[], bool], limit_s: float = 180) -> None:
        deadline = time.monotonic() + limit_s
        while True:
            try:
                if done():
                    return
            except httpx.HTTPError:
                pass
            for name, process in self.parts.items():
                assert process.poll() is None, f"{name} ended:\n{self.log(name)}"
            assert time.monotonic() < deadline, f"{self.local.applications()}\n{self.log('router')}"
            time.sleep(0.2)

    def log(self, name: str) -> str:
        return (self.local.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-3000:]


@pytest.fixture(scope="module")
def release() -> Iterator[Release]:
    folder = Path(tempfile.mkdtemp(prefix="r1h-", dir="/tmp"))
    with Family(grace_s=1):
        values = merge(values_file(CHART / "values-nano.yaml"), MORE)
        running = Release(Local(CHART, values, folder, secrets={"fleet": {"token": TOKEN}}))
        running.start()
        yield running
    shutil.rmtree(folder, ignore_errors=True)


def attached(release: Release) -> list[float]:
    """Ranks, as each process of the router sees them."""
    page = httpx.get(f"{release.local.url}/metrics", trust_env=False).text
    return [float(line.split()[-1]) for line in page.splitlines() if line.startswith("r1_ranks_attached{")]


def test_1_the_rank_attaches_and_the_router_is_ready(release: Release) -> None:
    release.until(lambda: attached(release) == [1] * PROCESSES)
    assert release.local.probe("router", "readinessProbe") == 200
    release.until(lambda: {app["status"] for app in release.local.applications().values()} == {"RUNNING"})
    assert list(release.local.applications()) == ["nano-tp1-main"]


def test_2_ray_answers_nobody_without_the_token(release: Release) -> None:
    response = httpx.get(f"{release.local.api}/api/serve/applications/", trust_env=False)
    assert response.status_code == 401


def test_3_a_stranger_without_the_fleets_token_gets_no_prompt(release: Release) -> None:
    first = release.local.grpc
    for port in range(first, first + 1 + PROCESSES):  # the shared one and each process's own
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as refused:
            next(FleetStub(channel).Attach(iter(())))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_4_the_helm_test_asks_over_http_and_grpc_and_both_say_132(release: Release) -> None:
    done = release.local.test()
    assert done.returncode == 0, done.stderr
    http, grpc = json.loads(done.stdout)
    assert "132" in http["answer"]
    assert http["reasoning_tokens"] > 10
    assert {**grpc, "door": "http"} == http


def test_5_the_workers_prestop_hook_lets_its_rank_leave_while_the_router_stays(release: Release) -> None:
    done = release.local.pre_stop("worker")
    assert done.returncode == 0
    assert done.stdout == ""
    release.until(lambda: attached(release) == [0] * PROCESSES)
    assert release.local.probe("router", "livenessProbe") == 200


def test_6_every_container_ends_on_sigterm_and_the_heads_prestop_hook_waits_for_its_workers(release: Release) -> None:
    with ThreadPoolExecutor() as pool:
        head = pool.submit(release.local.pre_stop, "head")
        for name in ("router", "worker"):
            release.parts[name].send_signal(signal.SIGTERM)
            release.parts[name].wait(30)
        done = head.result(60)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    release.parts["head"].send_signal(signal.SIGTERM)
    release.parts["head"].wait(30)
