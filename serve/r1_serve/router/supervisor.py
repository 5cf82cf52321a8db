"""``r1 router --processes N``: starts the processes, starts again what dies, ends all of them together.

The supervisor holds the ports and serves nothing itself: a process that dies is replaced on the same ports.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from r1_serve.errors import StartupError
from r1_serve.launch.processes import die_with_parent
from r1_serve.router.announce import announce, read
from r1_serve.router.ports import reserve
from r1_serve.router.siblings import Member
from r1_serve.settings import RouterSettings

logger = logging.getLogger(__name__)

POLL_S = 0.1
START_TIMEOUT_S = 120.0
END_MARGIN_S = 10.0  # beyond the drain
SHORT_LIFE_S = 10.0  # one that lived no longer is started again after a pause that doubles
MAX_PAUSE_S = 30.0

# The command of a process, its settings, and the file where it says that it listens.
Command = Callable[[Member, RouterSettings, Path], Sequence[str]]


def supervise(settings: RouterSettings, command: Command) -> None:
    """Run ``settings.processes`` routers on the same ports until SIGTERM or SIGINT. Raises StartupError where the ports
    are taken; ends with a process's own exit code where one cannot start."""
    with contextlib.ExitStack() as stack:
        host = settings.host
        http = stack.enter_context(reserve(host, settings.http_port, "http"))
        shared = stack.enter_context(reserve(host, settings.grpc_port, "grpc"))
        first = settings.fleet_port or (settings.grpc_port + 1 if settings.grpc_port else 0)
        own = [
            stack.enter_context(reserve(host, first + i if first else 0, "fleet")) for i in range(settings.processes)
        ]
        ports = settings.model_copy(update={"http_port": _port(http), "grpc_port": _port(shared)})
        fleet_ports = tuple(map(_port, own))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="r1-router-")))
        children = [_Child(Member(i, fleet_ports), ports, command, folder) for i in range(settings.processes)]
        stop = stack.enter_context(_stop_signal())
        try:
            _start(children, stop)
            if settings.announce is not None and not stop:
                pids = [child.pid for child in children]
                announce(
                    settings.announce,
                    http_port=ports.http_port,
                    grpc_port=ports.grpc_port,
                    processes=pids,
                    fleet_ports=list(fleet_ports),
                )
            while not stop:
                for child in children:
                    child.mend()
                time.sleep(POLL_S)
        finally:
            _end(children, settings.drain_s + END_MARGIN_S)


@dataclass
class _Child:
    member: Member
    settings: RouterSettings
    command: Command
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    due_at: float = 0.0
    short_lives: int = field(default=0)

    @property
    def file(self) -> Path:
        return self.folder / f"{self.member.index}.json"

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else 0

    @property
    def listens(self) -> bool:
        return self.process is not None and read(self.file).get("pid") == self.process.pid

    def start(self) -> None:
        self.process = subprocess.Popen(  # noqa: S603 - our own command
            self.command(self.member, self.settings, self.file),
            stdin=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
            start_new_session=True,  # a terminal's Ctrl-C reaches only the supervisor, which ends them in order
        )
        self.started_at = time.monotonic()

    def mend(self) -> None:
        """Start it again if it has died."""
        now = time.monotonic()
        if self.process is not None:
            code = self.process.poll()
            if code is None:
                return
            self.process = None
            self.short_lives = self.short_lives + 1 if now - self.started_at < SHORT_LIFE_S else 0
            pause = min(MAX_PAUSE_S, 2.0 ** (self.short_lives - 1)) if self.short_lives else 0.0
            self.due_at = now + pause
            logger.error("router process %d ended (exit code %s): again in %g s", self.member.index, code, pause)
        if now >= self.due_at:
            self.start()


def _start(children: Sequence[_Child], stop: Sequence[int]) -> None:
    for child in children:
        child.start()
    deadline = time.monotonic() + START_TIMEOUT_S
    while not stop and not all(child.listens for child in children):
        for child in children:
            code = child.process.poll() if child.process else None
            if code is not None:
                sys.exit(code if code > 0 else 1)  # it has said why
        if time.monotonic() > deadline:
            raise StartupError(f"a router process does not listen after {START_TIMEOUT_S:.0f} s: see the log")
        time.sleep(POLL_S)


def _end(children: Sequence[_Child], patience_s: float) -> None:
    processes = [child.process for child in children if child.process is not None]
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + patience_s
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.error("router process %d does not end: killed", process.pid)
            process.kill()
            process.wait()


@contextlib.contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """A list that gains SIGTERM or SIGINT when it comes."""
    heard: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _port(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def member_json(member: Member) -> str:
    """For the hidden option of the command."""
    return json.dumps({"index": member.index, "fleet_ports": member.fleet_ports, "supervisor": os.getpid()})


def member_of(text: str) -> Member:
    value = json.loads(text)
    return Member(value["index"], tuple(value["fleet_ports"]))
