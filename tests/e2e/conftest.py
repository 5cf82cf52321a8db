"""The real thing: `r1 rehearse` as a child, with Ray, vLLM ranks and the router. One fleet at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from r1_bench.fleet import Fleet, fleet
from r1_serve.nano.tasks import Problem, held_out

PROBLEMS = 200
SEED = 0


@pytest.fixture(scope="session")
def problems() -> list[Problem]:
    return held_out(PROBLEMS, SEED)


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The plan named by the module's parametrisation, running."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    with fleet(request.param, folder) as running:
        yield running
