"""Several routers on one fleet: each with settings of its own, every rank attached to all of them.

What differs is then the router alone. Ask one at a time: an idle router costs the ranks a beat a second.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
from r1_serve.launch.fleet import private_environment
from r1_serve.launch.processes import Child, Family

from r1_bench.fleet import START_TIMEOUT_S, FleetError

_POLL_S = 0.1


@contextmanager
def side_by_side(plan: Path, settings: Mapping[str, Mapping[str, str]]) -> Iterator[dict[str, str]]:
    """Run a router for each name, with its environment, and the ranks of ``plan`` once, until the block ends. Yields
    each router's URL. Raises FleetError."""
    with tempfile.TemporaryDirectory(prefix="r1-", ignore_cleanup_errors=True) as temporary, Family() as family:
        folder = Path(temporary)
        for name, environment in settings.items():
            command = ["router", "--plan", str(plan), "--http-port", "0", "--grpc-port", "0"]
            command += ["--announce", str(folder / f"{name}.json")]
            family.spawn(name, _r1(*command), folder / f"{name}.log", environment)
        _until(lambda: all((folder / f"{name}.json").exists() for name in settings), family)
        ports = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in settings}
        targets = ",".join(f"127.0.0.1:{said['grpc_port']}" for said in ports.values())
        command = ["serve", str(plan), "--address", "local", "--routers", targets, "--threads", "1"]
        command += ["--temporary", str(folder)]
        family.spawn("fleet", _r1(*command), folder / "fleet.log", private_environment())
        urls = {name: f"http://127.0.0.1:{said['http_port']}" for name, said in ports.items()}
        _until(lambda: all(map(_ready, urls.values())), family)
        yield urls


def _r1(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "r1_serve.cli", *arguments]


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _until(done: Callable[[], bool], family: Family) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not done():
        gone: Child | None = family.ended()
        if gone is not None:
            raise FleetError(f"{gone.why()}:\n{gone.log.read_text(errors='replace')[-2000:]}")
        if time.monotonic() > deadline:
            raise FleetError(f"not ready after {START_TIMEOUT_S:.0f} s")
        time.sleep(_POLL_S)
