"""The servers under comparison, each as its users start it: same checkpoint, same plan, one CPU rank of one thread."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from r1_cluster.plan import Plan

from r1_bench.fleet import fleet
from r1_bench.peers.environments import ROOT, Unavailable, python

PLAN = "nano-tp1"
CHECKPOINT = ROOT / "serve" / "r1_serve" / "nano" / "weights"
START_TIMEOUT_S = 240.0
END_TIMEOUT_S = 30.0

# As in a rehearsal: r1_serve.rehearsal.settings and r1_serve.launch.fleet.
_RANK = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
}
_RAY = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_ADDRESS": "",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}


@dataclass(frozen=True)
class Server:
    """Where one listens; ``pid`` leads its processes."""

    name: str
    port: int
    pid: int

    def cpu_s(self) -> float:
        """User and system time of all its processes."""
        return sum(process.cpu_times().user + process.cpu_times().system for process in _family(self.pid))

    def rss_mb(self) -> float:
        return sum(process.memory_info().rss for process in _family(self.pid)) / 2**20


@contextmanager
def ours() -> Iterator[Server]:
    """Router, Ray Serve and a vLLM rank: ``r1 rehearse``."""
    with fleet(PLAN) as running:
        yield Server("ours", running.http_port, running.pid)


@contextmanager
def vllm() -> Iterator[Server]:
    """vLLM's own OpenAI server, which ``vllm serve`` runs, from this environment: the rank's very vLLM."""
    port = _free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(CHECKPOINT)]
    command += ["--served-model-name", "r1-nano", "--host", "127.0.0.1", "--port", str(port)]
    for name, value in engine_arguments().items():
        flag = name.replace("_", "-")
        command += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    with _running("vllm", command, port, _RANK) as server:
        yield server


@contextmanager
def vllm_router(worker_port: int) -> Iterator[Server]:
    """PyPI's vllm-router, written in Rust, before the server at ``worker_port``."""
    port = _free_port()
    command = [str(python("vllm-router").with_name("vllm-router")), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", f"http://127.0.0.1:{worker_port}", "--policy", "round_robin"]
    command += ["--prometheus-port", str(_free_port()), "--log-level", "warning"]
    with _running("vllm-router", command, port, {}) as server:
        yield server


@contextmanager
def ray_serve_llm(*, direct: bool) -> Iterator[Server]:
    """Ray Serve LLM; ``direct``: its mode of streaming from the replicas through HAProxy."""
    name = "ray-serve-llm-direct" if direct else "ray-serve-llm"
    port = _free_port()
    interpreter, script = python("ray-serve-llm", plugins=True), Path(__file__).with_name("ray_serve_llm.py")
    with tempfile.TemporaryDirectory(prefix="r1-peer-") as folder:
        environment = {**_RANK, **_RAY, "RAY_TMPDIR": folder}
        if direct:
            environment |= {
                "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
                "RAY_SERVE_ENABLE_HA_PROXY": "1",
                "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
                "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
            }
        command = [str(interpreter), str(script), str(CHECKPOINT), json.dumps(engine_arguments()), str(port)]
        with _running(name, command, port, environment, health="/v1/models") as server:
            yield server


def engine_arguments() -> dict[str, Any]:
    """The plan's, as ``r1_serve.workers.engine`` gives them to the rank."""
    plan = Plan.load(PLAN)
    engine = plan.engine
    return {
        "dtype": plan.model.dtype,
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "enforce_eager": engine.enforce_eager,
        "enable_prefix_caching": engine.enable_prefix_caching,
        "kv_cache_memory_bytes": int((plan.fleet.kv_cache_gib_per_rank or 0.5) * 2**30),
    }


@contextmanager
def _running(
    name: str, command: Sequence[str], port: int, environment: dict[str, str], health: str = "/health"
) -> Iterator[Server]:
    """Run ``command`` until the block ends. Raises Unavailable where it does not come to serve."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "VLLM_"))}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, env={**kept, **environment}, stdout=output, stderr=output, start_new_session=True
        )
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not _answers(port, health):
                if process.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    said = " ".join(output.read().decode(errors="replace").split())[-400:]
                    raise Unavailable(f"{name} did not start: {said}")
                time.sleep(0.2)
            yield Server(name, port, process.pid)
        finally:
            family = _family(process.pid)
            process.send_signal(signal.SIGTERM)
            _, left = psutil.wait_procs(family, timeout=END_TIMEOUT_S)
            for orphan in left:  # Ray's HAProxy outlives its parents
                orphan.kill()
            process.wait()


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _family(pid: int) -> list[psutil.Process]:
    try:
        leader = psutil.Process(pid)
        return [leader, *leader.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
