"""``r1 router --processes N``: one address, several processes, each reached by every worker."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from r1_serve.errors import StartupError
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.router.siblings import merged
from r1_serve.router.supervisor import supervise
from r1_serve.settings import RouterSettings
from r1_serve.workers.attachment import Attachments
from r1_serve.workers.generations import Generations

PATIENCE_S = 60.0
TOKEN = "t" * 32  # of all processes


def until(condition: Any, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def routers(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """Two processes and their supervisor, and what it announced."""
    file = tmp_path / "ports.json"
    options = ["--processes", "2", "--http-port", "0", "--grpc-port", "0", "--announce", str(file)]
    command = [sys.executable, "-m", "r1_serve.cli", "router", "--plan", "nano-tp1", *options]
    own = {**os.environ, "R1_FLEET_TOKEN": TOKEN}
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, env=own) as process:
        try:
            until(file.exists, process)
            yield process, json.loads(file.read_text())
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def ups(port: int) -> list[str]:
    page = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    return [line[-1] for line in page.splitlines() if line.startswith("r1_router_process_up{")]


async def attached(said: dict[str, Any], hello: pb.Hello) -> set[int]:
    """In how many processes a worker that knows the shared port is seen, by the metrics of all."""
    router = f"127.0.0.1:{said['grpc_port']}"
    worker = Attachments(hello, Generations(), [router], resolve_interval_s=0.05, token=lambda: TOKEN)
    task = asyncio.create_task(worker.run())
    seen: set[int] = set()
    try:
        async with httpx.AsyncClient() as http, asyncio.timeout(PATIENCE_S):
            while len(seen) < len(said["processes"]):
                page = (await http.get(f"http://127.0.0.1:{said['http_port']}/metrics")).text
                seen = {i for i in (0, 1) if f'r1_ranks_attached{{process="{i}",model="r1-nano"}} 1.0' in page}
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await worker.leave()
    return seen


def test_processes_share_the_port_workers_reach_each_and_the_dead_are_replaced(
    routers: tuple[subprocess.Popen[bytes], dict[str, Any]], hello: pb.Hello
) -> None:
    process, said = routers
    assert len({process.pid, *said["processes"]}) == 3
    assert asyncio.run(attached(said, hello)) == {0, 1}
    assert ups(said["http_port"]) == ["1", "1"]
    os.kill(said["processes"][0], signal.SIGKILL)
    until(lambda: (said["processes"][0], ups(said["http_port"]))[1] != ["1", "1"], process)
    until(lambda: ups(said["http_port"]) == ["1", "1"], process)
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    for pid in said["processes"]:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_port_that_a_stranger_would_share_is_refused() -> None:
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        settings = RouterSettings(processes=2, http_port=stranger.getsockname()[1], grpc_port=0)
        with pytest.raises(StartupError, match=r"--http-port"):
            supervise(settings, lambda *_: ["false"])


def test_a_process_that_cannot_start_ends_all_with_its_own_exit_code() -> None:
    settings = RouterSettings(processes=2, http_port=0, grpc_port=0)
    with pytest.raises(SystemExit) as end:
        supervise(settings, lambda *_: [sys.executable, "-c", "raise SystemExit(2)"])
    assert end.value.code == 2


def test_metrics_of_several_processes_are_one_page_with_a_label_each() -> None:
    page = b'# HELP a_total Of a\n# TYPE a_total counter\na_total{x="{1 "} 1.0\n# HELP b Of b\n# TYPE b gauge\nb 2.0\n'
    assert merged({"0": page, "1": page, "2": None}).decode().splitlines() == [
        "# HELP a_total Of a",
        "# TYPE a_total counter",
        'a_total{process="0",x="{1 "} 1.0',
        'a_total{process="1",x="{1 "} 1.0',
        "# HELP b Of b",
        "# TYPE b gauge",
        'b{process="0"} 2.0',
        'b{process="1"} 2.0',
        "# HELP r1_router_process_up Whether the process answered this scrape",
        "# TYPE r1_router_process_up gauge",
        'r1_router_process_up{process="0"} 1',
        'r1_router_process_up{process="1"} 1',
        'r1_router_process_up{process="2"} 0',
    ]
