"""Ray and the ranks of a plan: ``r1 serve``. A rehearsal runs it as a child, with a private Ray of its own."""

from __future__ import annotations

import secrets
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType

from r1_cluster.plan import Plan

from r1_serve.errors import StartupError
from r1_serve.settings import ray_address

# What is printed when a step is done: a rehearsal waits for these lines.
RAY_UP = "Ray is up"
RANKS_UP = "every rank is healthy"
LOCAL, AUTO = "local", "auto"

OBJECT_STORE_BYTES = 128 << 20  # the token path does not use it
WATCH_INTERVAL_S = 1.0


def private_environment(*, metrics: bool = False) -> dict[str, str]:
    """Environment of a Ray that serves this machine alone: loopback only, and a token nobody else has. ``metrics``:
    somebody scrapes its agent."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ADDRESS": "",
        # Ray's own switch for machines whose other addresses should stay closed: nodes then live on 127.0.0.1.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray makes its workers nice (15): on a shared core a rank's engine would give way to everything else.
        "RAY_worker_niceness": "0",
        # Serve's controller looks after one deployment: at Ray's ten looks a second it takes 2 % of a core.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "1",
        # Workers that wait for tasks nobody sends, and Ray's processes that watch them, take another per cent.
        "RAY_num_workers_soft_limit": "0",
        # What Ray tells of itself reaches nobody here: there is no dashboard, no cluster to grow, and nothing that
        # scrapes its agent unless asked for. Left alone it takes 2 % of a core from the ranks.
        "RAY_event_stats": "0",
        "RAY_task_events_report_interval_ms": "0",
        "RAY_enable_metrics_collection": str(int(metrics)),
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000" if metrics else "60000",
        "REPORTER_UPDATE_INTERVAL_MS": "60000",
        "AUTOSCALER_UPDATE_INTERVAL_S": "60",
        "RAY_memory_monitor_refresh_ms": "1000",
        # Our accelerators may be CPU ranks that only claim to be GPUs: there is nothing to hide from a process.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_COLOR_PREFIX": "0",
        "PYTHONWARNINGS": "ignore::FutureWarning",
    }


def serve(plan: Plan, *, address: str, routers: str | None, threads: int, temporary: Path | None = None) -> None:
    """Put the ranks of ``plan`` on a Ray cluster and keep them until SIGTERM or SIGINT.

    ``address`` is ``auto``, ``host:port`` or ``local``, which starts a private Ray below ``temporary`` with as many
    (rehearsed) accelerators as the plan asks for. Raises StartupError where Ray or a rank does not start, and when
    Ray ends while the ranks serve.
    """
    if address == AUTO:
        address = ray_address() or AUTO  # as Ray would read it
    _reach(address)
    import ray

    from r1_serve.workers.application import deploy, pool_resource, undeploy

    try:
        if address == LOCAL:
            ray.init(
                address=LOCAL,
                num_cpus=plan.accelerators + 2,
                num_gpus=plan.accelerators,
                resources={pool_resource(pool): pool.gangs * pool.layout.accelerators for pool in plan.pools},
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                namespace="r1",
                _temp_dir=str(temporary) if temporary else None,
                # On disk: a container's /dev/shm may be too small for a store that nothing is put into.
                _plasma_directory=str(temporary) if temporary else None,
            )
            _end_log_monitor()
        else:
            ray.init(address=address, log_to_driver=False, namespace="r1")
    except (ConnectionError, RuntimeError, ValueError, OSError) as e:
        raise StartupError(f"no Ray cluster at {address}: {' '.join(str(e).split())[:300]}") from e
    print(f"{RAY_UP}: {plan.accelerators} accelerators asked for", flush=True)
    for number in (signal.SIGTERM, signal.SIGINT):  # ray.init has put its own there
        signal.signal(number, _leave)
    gone = ""
    try:
        deploy(plan, routers=routers, threads=threads)
        print(f"{RANKS_UP}: plan {plan.name}, {plan.hash}", flush=True)
        while not (gone := _dead_parts()):
            time.sleep(WATCH_INTERVAL_S)
    finally:
        if not gone:  # else Serve would wait half a minute for answers that cannot come
            undeploy()
        ray.shutdown()
    raise StartupError(f"Ray's {gone} ended: every rank went with it")


def _reach(address: str) -> None:
    """Ray ends the process, without an exception, where nothing answers at ``host:port``: ask first."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as e:
        raise StartupError(f"no Ray cluster answers at {address} ({e.strerror or e}): is its head running?") from e


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def _end_log_monitor() -> None:
    """It reads every log several times a second for drivers that want lines of their workers, and ours does not."""
    import ray

    ray._private.worker._global_node.kill_log_monitor(check_alive=False)


def _dead_parts() -> str:
    """Names of Ray's own essential processes that have died; a cluster somebody else started is theirs to watch."""
    import ray

    node = getattr(ray._private.worker, "_global_node", None)
    if node is None or not node.is_head():
        return ""
    dead = {name for name, _ in node.dead_processes()} & {"gcs_server", "raylet"}
    return " and ".join(sorted(dead))
