"""The peers' own environments, below ``.r1/peers``: from a pinned list, made once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
ENVIRONMENTS = ROOT / ".r1" / "peers"
TORCH = "https://download.pytorch.org/whl/cpu/torch/"


class Unavailable(RuntimeError):
    """A peer cannot be had here; the message says why."""


def python(name: str, *, plugins: bool = False) -> Path:
    """The interpreter of peer ``name``; ``plugins``: with this project's vLLM plug-ins installed beside it.

    Raises Unavailable where a package cannot be installed.
    """
    folder = ENVIRONMENTS / name
    found = folder / "bin" / "python"
    lock = Path(__file__).parent / f"{name}.lock"
    stamp = folder / "installed.lock"
    if stamp.exists() and stamp.read_bytes() == lock.read_bytes():
        return found
    print(f"{name}: installing its own environment in {folder}", file=sys.stderr, flush=True)
    uv = [sys.executable, "-m", "uv"]
    _run(name, [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)])
    # Files that this project's environment has already are linked from uv's cache.
    install = [*uv, "pip", "install", "--quiet", "--no-deps", "--link-mode", "hardlink", "--python", str(found)]
    _run(name, [*install, "--find-links", os.environ.get("PIP_FIND_LINKS", TORCH), "--requirement", str(lock)])
    if plugins:
        _run(name, [*install, "--no-build-isolation", "--editable", str(ROOT)])
    stamp.write_bytes(lock.read_bytes())
    return found


def _run(name: str, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-400:]
        raise Unavailable(f"{name} cannot be installed: {said}")
