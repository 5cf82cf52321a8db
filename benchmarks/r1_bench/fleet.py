"""A rehearsed fleet to measure: the ``r1`` command as an operator runs it, in a process of its own."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

START_TIMEOUT_S = 600.0
END_TIMEOUT_S = 60.0
_POLL_S = 0.1


class FleetError(RuntimeError):
    """The fleet did not start; the message ends with what it said."""


_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # loaded before a fork needs it


def end_with_parent() -> None:
    """``preexec_fn`` of a child that the kernel shall send SIGTERM when the thread that started it dies, and so when we
    are killed. A rehearsal started by hand has none of this, and outlives its shell under nohup."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


@dataclass(frozen=True)
class Fleet:
    """Where a running fleet listens. ``pid`` is the command's."""

    plan: str
    pid: int
    http_port: int
    grpc_port: int
    startup_seconds: float
    logs: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def metrics(self, *names: str) -> list[float]:
        """The router's of these ``names``, at one moment: see total."""
        page = httpx.get(f"{self.url}/metrics", trust_env=False).text
        return [total(page, name) for name in names]


def total(page: str, name: str) -> float:
    """A metric on a /metrics page, summed over its labels."""
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(f"{name}{{"))


@contextmanager
def fleet(plan: str, folder: Path | None = None, settings: Mapping[str, str] | None = None) -> Iterator[Fleet]:
    """Run ``r1 rehearse PLAN`` on free ports until the block or this process ends, be it by SIGKILL; logs and
    announcements go to ``folder``. To be called on a thread that lives as long as the block.

    ``settings`` are environment variables of the command, beside the caller's.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = folder or Path(temporary)
        announce, said = folder / "fleet.json", folder / "said.log"
        command = [sys.executable, "-m", "r1_serve.cli", "rehearse", plan, "--http-port", "0", "--grpc-port", "0"]
        command += ["--announce", str(announce), "--logs", str(folder)]
        started = time.monotonic()
        with said.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent,
                env={**os.environ, **(settings or {})},
            )
        try:
            while not announce.exists():
                if process.poll() is not None or time.monotonic() - started > START_TIMEOUT_S:
                    raise FleetError(f"{plan} did not start:\n{said.read_text(errors='replace')[-2000:]}")
                time.sleep(_POLL_S)
            where = json.loads(announce.read_text(encoding="utf-8"))
            seconds = time.monotonic() - started
            yield Fleet(plan, process.pid, where["http_port"], where["grpc_port"], seconds, folder)
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGINT)
            try:
                process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
