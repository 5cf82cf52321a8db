"""The whole deployment on this machine: router, Ray and ranks as children of one command that always cleans up."""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import ClassVar, TypeVar

import httpx
from r1_cluster.plan import Plan
from rich.console import Console

from r1_serve.errors import R1Error, StartupError
from r1_serve.launch import show
from r1_serve.launch.ask import ask
from r1_serve.launch.fleet import LOCAL, RANKS_UP, RAY_UP, private_environment
from r1_serve.launch.preflight import preflight
from r1_serve.launch.processes import Child, Family
from r1_serve.launch.stages import Stages
from r1_serve.router.announce import announce as write_ports
from r1_serve.settings import RouterSettings, WorkerSettings, load, ray_address

SAMPLE = "What is 47 + 85?"
START_TIMEOUT_S = 600.0
GRACE_S = 3.0  # whoever ends a rehearsal waits for its end
POLL_S = 0.1


Result = TypeVar("Result")


class Stop(BaseException):
    """SIGINT or SIGTERM arrived. Not an Exception: nothing on the way may swallow it."""

    def __init__(self, number: int) -> None:
        self.exit_code = 128 + number


@dataclass(frozen=True)
class Commands:
    """How the two children are started: the seam tests replace."""

    router: Callable[[Path, RouterSettings, Path], Sequence[str]]  # plan file, settings, announce file
    fleet: Callable[[Path, str, int, Path], Sequence[str]]  # plan file, router's host:port, threads, Ray's folder


def _r1(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "r1_serve.cli", *arguments]


def _router(plan: Path, settings: RouterSettings, announce: Path) -> list[str]:
    ports = ["--http-port", str(settings.http_port), "--grpc-port", str(settings.grpc_port)]
    options = ["--host", settings.host, *ports, "--processes", str(settings.processes), "--announce", str(announce)]
    return _r1("router", "--plan", str(plan), *options)


def _fleet(plan: Path, routers: str, threads: int, temporary: Path) -> list[str]:
    options = ["--address", LOCAL, "--routers", routers, "--threads", str(threads), "--temporary", str(temporary)]
    return _r1("serve", str(plan), *options)


COMMANDS = Commands(_router, _fleet)


def rehearse(
    plan: Plan,
    *,
    settings: RouterSettings,
    question: str | None,
    threads: int,
    logs: Path,
    started_at: float,
    announce: Path | None = None,
    commands: Commands = COMMANDS,
    check: Callable[..., None] = preflight,
) -> int:
    """Start everything, ask one question, serve until SIGINT or SIGTERM; return the exit code.

    With ``question`` ask that, print one JSON object and end. ``started_at`` (Unix seconds) is where
    ``startup_seconds`` counts from; ``announce`` is written, as by a router, once the question is answered. No process
    of ours is left however this ends. Raises StartupError.
    """
    stages, family = Stages(), Family(grace_s=GRACE_S)
    heard = _signals(family)
    previous = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    logs.mkdir(parents=True, exist_ok=True)
    temporary = _temporary()
    try:
        with family, _announced():
            run = _Run(plan, settings, threads, logs, temporary, stages, family, commands)
            with stages.stage("checking this machine"):
                check(
                    plan,
                    host=settings.host,
                    http_port=settings.http_port,
                    grpc_port=settings.grpc_port,
                    ray_address=ray_address(),
                    temporary=temporary,
                )
            run.start()
            startup_seconds = time.time() - started_at
            if question is not None:
                answer = run.guarded(lambda: ask(run.url, question, model=plan.model.name, temperature=0))
                print(show.once(plan, answer, startup_seconds))
                return 0
            run.present(startup_seconds)
            if announce is not None:  # now: who waits for it has the fleet to himself
                write_ports(announce, http_port=run.http_port, grpc_port=run.grpc_port)
            return run.watch()
    except Stop as stop:
        return stop.exit_code
    except R1Error:
        _keep_ray_logs(temporary, logs)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _temporary() -> Path:
    """A folder for Ray's files, short: a Unix socket's path below it must stay under 108 bytes, and Ray adds 64."""
    folder = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="r1-", dir=folder if len(folder) <= 28 else "/tmp"))  # noqa: S108


def _keep_ray_logs(temporary: Path, logs: Path) -> None:
    """Ray's folder goes; what it wrote there may say why a rank did not start."""
    for folder in temporary.glob("session_2*/logs"):
        shutil.copytree(folder, logs / "ray", dirs_exist_ok=True, ignore_dangling_symlinks=True)


@contextmanager
def _announced() -> Iterator[None]:
    """Say at once that a signal was heard; what follows takes seconds."""
    try:
        yield
    except Stop:
        print("\nending …", file=sys.stderr, flush=True)
        raise


def _signals(family: Family) -> Callable[[int, FrameType | None], None]:
    """A handler: the first signal interrupts whatever runs, another one only hurries the end."""
    stopping = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            family.hurry()
        else:
            stopping = True
            raise Stop(number)

    return handle


@dataclass
class _Run:
    plan: Plan
    settings: RouterSettings
    threads: int
    logs: Path
    temporary: Path
    stages: Stages
    family: Family
    commands: Commands
    http_port: int = 0
    grpc_port: int = 0

    @cached_property
    def fleet_token(self) -> dict[str, str]:
        """Environment of both children: router and ranks of one rehearsal know each other, and nobody else, unless the
        environment has a token already."""
        given = self.settings.fleet_token or self.settings.fleet_token_file
        return {} if given else {"R1_FLEET_TOKEN": secrets.token_hex(32)}

    @property
    def url(self) -> str:
        return f"http://{show.address(self.settings.host, self.http_port)}"

    def start(self) -> None:
        """Router, then Ray, then the ranks, each waited for."""
        plan_file, announce = self.temporary / "plan.yaml", self.temporary / "router.json"
        plan_file.write_text(self.plan.to_yaml(), encoding="utf-8")
        with self.stages.stage("router"):
            command = self.commands.router(plan_file, self.settings, announce)
            self.family.spawn("router", command, self.logs / "router.log", self.fleet_token)
            self._wait(announce.exists)
            ports = json.loads(announce.read_text(encoding="utf-8"))
            self.http_port, self.grpc_port = ports["http_port"], ports["grpc_port"]
        with self.stages.stage("Ray"):
            router = show.address(self.settings.host, self.grpc_port)
            command = self.commands.fleet(plan_file, router, self.threads, self.temporary)
            environment = private_environment(metrics=load(WorkerSettings).vllm_metrics) | self.fleet_token
            fleet = self.family.spawn("fleet", command, self.logs / "fleet.log", environment)
            self._wait(lambda: fleet.said(RAY_UP))
        with self.stages.stage(f"vLLM ranks, {show.shape(self.plan)} on {self.plan.accelerators} CPU workers"):
            self._wait(lambda: fleet.said(RANKS_UP))
        with self.stages.stage("ranks attached to the router"):
            self._wait(self._ready)

    def present(self, startup_seconds: float) -> None:
        """A sample question with its answer, and where everything is."""
        console = Console(highlight=False)
        console.print(f"\n[bold]Ready[/] after {startup_seconds:.0f} s. A sample question: [bold]{SAMPLE}[/]\n")
        reader = show.Reader(console)
        reader.end(self.guarded(lambda: ask(self.url, SAMPLE, model=self.plan.model.name, temperature=0, show=reader)))
        where = show.endpoints(
            self.plan,
            http=show.address(self.settings.host, self.http_port),
            grpc=show.address(self.settings.host, self.grpc_port),
            logs=str(self.logs),
        )
        print(where, flush=True)

    def watch(self) -> int:
        """Serve until a signal, which is the normal end (0); raise R1Error when a part dies."""
        try:
            with _announced():
                while (gone := self.family.ended()) is None:
                    time.sleep(POLL_S)
        except Stop:
            return 0
        raise Died(self._because(gone))

    def guarded(self, call: Callable[[], Result]) -> Result:
        """``call()``; where it fails because a part died, say that instead."""
        try:
            return call()
        except R1Error:
            if gone := self.family.ended():
                raise Died(self._because(gone)) from None
            raise

    def _wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not done():
            if gone := self.family.ended():
                raise StartupError(self._because(gone))
            if time.monotonic() > deadline:
                raise StartupError(f"not done after {START_TIMEOUT_S:.0f} s: see the logs in {self.logs}")
            self.stages.tick()
            time.sleep(POLL_S)

    def _because(self, gone: Child) -> str:
        return f"{gone.why()} (logs: {self.logs})"

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ready", timeout=2.0, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False


class Died(R1Error):
    """A part ended while it should have served."""

    reason = "died"
    exit_code: ClassVar[int] = 1
