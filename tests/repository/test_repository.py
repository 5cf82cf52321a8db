"""What the README, the Makefile, CI and the locks say of each other is true."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

phony = set(next(line for line in MAKEFILE.splitlines() if line.startswith(".PHONY:")).split()[1:])


def locked(name: str) -> dict[str, Version]:
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(package): Version(version) for package, version in pairs}


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    # A make above this one must not lend its flags.
    environment = {key: value for key, value in os.environ.items() if "MAKE" not in key}
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True
    )


def test_make_help_lists_every_target() -> None:
    listed = set(re.findall(r"^  make ([a-z-]+)", make("help").stdout, re.MULTILINE))
    assert listed == phony


def test_make_alone_is_make_help() -> None:
    assert make().stdout == make("help").stdout


def test_ci_runs_commands_of_the_readme() -> None:
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    commands = re.findall(r"^make .+", script, re.MULTILINE)
    assert commands
    for command in commands:
        assert command in README


def test_every_plan_of_the_readme_is_shipped_and_every_shipped_plan_is_in_the_readme() -> None:
    shipped = {path.stem for path in (ROOT / "cluster/r1_cluster/plans").glob("*.yaml")}
    assert set(re.findall(r"^\| `(nano-[a-z0-9-]+)`", README, re.MULTILINE)) == shipped


@pytest.mark.parametrize("lock", ["cpu.lock", "dev.lock"])
def test_a_lock_pins_every_line_once_and_names_no_cuda_wheel(lock: str) -> None:
    lines = [line for line in (ROOT / "requirements" / lock).read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    assert all(re.fullmatch(r"[a-z0-9-]+==[A-Za-z0-9.+]+", line) for line in lines)
    assert lines == sorted(lines)
    names = set(locked(lock))
    assert len(names) == len(lines)
    assert names.isdisjoint({"torchvision", "torchaudio", "torchcodec"})
    assert not any(name.startswith("nvidia-") for name in names)


@pytest.mark.parametrize(("extras", "locks"), [(("cpu",), ("cpu.lock",)), (("dev", "bench"), ("cpu.lock", "dev.lock"))])
def test_the_locks_satisfy_what_pyproject_asks_for(extras: tuple[str, ...], locks: tuple[str, ...]) -> None:
    pins = {name: version for lock in locks for name, version in locked(lock).items()}
    wanted = list(PROJECT["dependencies"])
    for extra in extras:
        wanted += PROJECT["optional-dependencies"][extra]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_cpu_lock_holds_pytorchs_cpu_build_and_what_builds_the_package() -> None:
    pins = locked("cpu.lock")
    assert pins["torch"].local == "cpu"
    assert pins["setuptools"] >= Version("77")
