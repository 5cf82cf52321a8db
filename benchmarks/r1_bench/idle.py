"""Connections that say nothing: what they cost a router, whether others are served, when they are gone.

``python -m r1_bench.idle --connections 10000``; the last line is one JSON object. Needs as many open files.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from r1_bench.results import environment, write

AT_ONCE = 200
PROBES = 20
METRICS = ("r1_http_connections", "r1_http_connections_closed_total")


def measure(connections: int, most: int) -> dict[str, Any]:
    """Open so many connections to a fresh router that takes ``most``, and wait until all are closed."""
    with tempfile.TemporaryDirectory() as folder:
        announced = Path(folder) / "ports.json"
        command = [sys.executable, "-m", "r1_serve.cli", "router", "--plan", "nano-tp1", "--http-port", "0"]
        command += ["--grpc-port", "0", "--announce", str(announced)]
        settings = {**os.environ, "R1_MAX_CONNECTIONS": str(most), "R1_LOG_LEVEL": "warning"}
        with subprocess.Popen(command, env=settings) as process:
            try:
                while not announced.exists():
                    time.sleep(0.05)
                port = json.loads(announced.read_text(encoding="utf-8"))["http_port"]
                measured = asyncio.run(_idle(process.pid, port, connections))
            finally:
                process.terminate()
    return {"connections": connections, "max_connections": most, **measured}


async def _idle(pid: int, port: int, connections: int) -> dict[str, Any]:
    router, begun = psutil.Process(pid), time.monotonic()
    before = router.memory_info().rss
    readers, writers = [], []
    for _ in range(0, connections, AT_ONCE):
        for reader, writer in await asyncio.gather(
            *(asyncio.open_connection("127.0.0.1", port) for _ in range(AT_ONCE))
        ):
            readers.append(reader)
            writers.append(writer)
    opened = time.monotonic()
    waits = []
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        for _ in range(PROBES):
            sent = time.monotonic()
            (await http.get("/health")).raise_for_status()
            waits.append(time.monotonic() - sent)
        megabytes = (router.memory_info().rss - before) / 1e6
        await asyncio.gather(*(reader.read() for reader in readers), return_exceptions=True)
        closed = time.monotonic()
        page = (await http.get("/metrics")).text
    for writer in writers:
        writer.close()
    return {
        "opened_in_s": round(opened - begun, 2),
        "megabytes": round(megabytes, 1),
        "health_ms_worst": round(1000 * max(waits), 1),
        "all_closed_after_s": round(closed - opened, 1),
        "metrics": [line for line in page.splitlines() if line.startswith(METRICS) and "_created" not in line],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--write", action="store_true", help="keep the result")
    options = parser.parse_args()
    runs = [measure(options.connections, most) for most in (12_000, 8192)]
    result = {"environment": environment(), "runs": runs}
    if options.write:
        rows = "\n".join(
            f"| {r['max_connections']} | {r['megabytes']} | {r['health_ms_worst']} | {r['all_closed_after_s']} |"
            for r in runs
        )
        text = (
            f"# {options.connections} idle connections to one router process\n\n{environment()['hardware']}; "
            f"`{environment()['command']}`\n\n"
            "| R1_MAX_CONNECTIONS | MB for them | worst of 20 /health meanwhile, ms | all closed after, s |\n"
            f"|---|---|---|---|\n{rows}\n\nR1_IDLE_S is 15. Beyond the limit the longest idle one gives its place.\n"
        )
        print(write("idle_connections_cpu", result, text))
    print(json.dumps({"runs": runs}))


if __name__ == "__main__":
    main()
