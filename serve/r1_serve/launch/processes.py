"""Children that never outlive us: however this process ends, the router, Ray and every rank end too.

Three nets, in the order they catch: SIGTERM and a grace period; SIGKILL to every descendant (as a subreaper we are
also the parent of those whose own parent died); and, should this very process be killed, the kernel's
parent-death signal to each child.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def die_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def give_way() -> None:
    """Let this process and its descendants, when they wake, wait for a core rather than take one from who computes.

    A step wakes dozens of threads of the router, the replica and Ray for microseconds; on a small machine each may push
    a rank's engine off its core and out of its caches. What runs longer gets its fair share as before.
    """
    with contextlib.suppress(AttributeError, OSError):  # no Linux, or a sandbox that forbids it: only slower
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _prepare() -> None:
    die_with_parent()
    give_way()


@dataclass(frozen=True)
class Child:
    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def exit_code(self) -> int | None:
        return self.process.poll()

    def said(self, text: str) -> bool:
        """Whether the child's log has a line that starts with ``text``."""
        return any(line.startswith(text) for line in self._lines())

    def why(self) -> str:
        """One line on why the child ended: its own last error line, else its exit code."""
        for line in reversed(self._lines()):
            if line.startswith("error: "):
                return line.removeprefix("error: ")
        code = self.exit_code
        ended = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
        return f"the {self.name} {ended}"

    def _lines(self) -> list[str]:
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()


class Family:
    """The children of this process; leaving the context ends all of them and theirs."""

    def __init__(self, *, grace_s: float = 8.0) -> None:
        self.grace_s = grace_s
        self.children: list[Child] = []
        self._hurried = False

    def __enter__(self) -> Family:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def spawn(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str] = {}) -> Child:
        """Start ``command`` in a session of its own (a terminal's Ctrl-C reaches only us), all output to ``log``."""
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 - our own commands
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                start_new_session=True,
                preexec_fn=_prepare,
            )
        child = Child(name, process, log)
        self.children.append(child)
        return child

    def ended(self) -> Child | None:
        """The first child that is no longer running."""
        return next((child for child in self.children if child.exit_code is not None), None)

    def stop(self) -> None:
        """End everything: politely for ``grace_s`` or until :meth:`hurry`, then hard."""
        inodes = _shared_memory()
        for child in reversed(self.children):
            if child.exit_code is None:
                child.process.terminate()
        deadline = time.monotonic() + self.grace_s
        while time.monotonic() < deadline and not self._hurried:
            if all(child.exit_code is not None for child in self.children):
                break
            time.sleep(0.05)
        kill_descendants()
        _unlink(inodes)

    def hurry(self) -> None:
        """Cut the grace period short. May be called from a signal handler."""
        self._hurried = True


def _shared_memory() -> set[int]:
    """Inodes in /dev/shm that our descendants have mapped: one that is killed leaves its own behind.

    Inodes, not names: a semaphore's mapping names the temporary file it was made as.
    """
    found: set[int] = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
            found |= {int(line.split()[4]) for line in lines if f" {SHARED_MEMORY}/" in line}
    return found


def _unlink(inodes: set[int]) -> None:
    for file in SHARED_MEMORY.iterdir() if inodes else ():
        with contextlib.suppress(OSError):
            if file.stat().st_ino in inodes:
                file.unlink()


def kill_descendants() -> None:
    """SIGKILL to every process below this one, again until none is left: a dying parent's children become ours."""
    for _ in range(20):
        living = psutil.Process().children(recursive=True)
        if not living:
            return
        for process in living:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(living, timeout=1)
