"""The real thing: `r1 rehearse` as a child, with Ray, vLLM ranks and the router. One fleet at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from r1_bench.fleet import Fleet, fleet
from r1_bench.topology import Reply
from r1_serve.nano.tasks import Problem, held_out

PROBLEMS = 200
SEED = 0


@pytest.fixture(scope="session")
def problems() -> list[Problem]:
    return held_out(PROBLEMS, SEED)


@pytest.fixture(scope="session")
def truth() -> list[Reply]:
    """transformers' greedy answers to ``problems``."""
    command = [sys.executable, "-m", "r1_serve.nano.reference", "--n", str(PROBLEMS), "--seed", str(SEED)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout
    rows = map(json.loads, printed.splitlines())
    return [Reply(row["reasoning"], row["answer"], row["completion_tokens"]) for row in rows]


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The plan named by the module's parametrisation, running."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    with fleet(request.param, folder) as running:
        yield running
