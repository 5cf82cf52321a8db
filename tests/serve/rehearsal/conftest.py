"""vLLM runs in child processes here: it patches what it imports, and its warnings are not this project's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Probe = Callable[..., Any]


@pytest.fixture(scope="package")
def probe() -> Probe:
    """Run ``probes/<name>.py`` and return the JSON it prints last. ``plugins=False`` hides every vLLM plug-in."""

    def run(name: str, *arguments: str, plugins: bool = True) -> Any:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("VLLM_", "RAY_"))}
        environment |= {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "CUDA_VISIBLE_DEVICES": ""}
        if not plugins:
            environment["VLLM_PLUGINS"] = ""
        script = Path(__file__).parent / "probes" / f"{name}.py"
        child = subprocess.run(
            [sys.executable, str(script), *arguments], env=environment, capture_output=True, text=True, timeout=240
        )
        assert child.returncode == 0, f"{name} exited with {child.returncode}:\n{child.stderr[-4000:]}"
        return json.loads(child.stdout.splitlines()[-1])

    return run
