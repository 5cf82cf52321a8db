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
    """Run ``probes/<name>.py``; return the last JSON object it prints. ``plugins=False`` hides every vLLM plug-in."""

    def run(name: str, *arguments: str, plugins: bool = True) -> Any:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("VLLM_", "RAY_"))}
        environment |= {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "CUDA_VISIBLE_DEVICES": ""}
        if not plugins:
            environment["VLLM_PLUGINS"] = ""
        script = Path(__file__).parent / "probes" / f"{name}.py"
        # -P: a probe called platform.py must not stand in for the standard library's.
        command = [sys.executable, "-P", str(script), *arguments]
        child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert child.returncode == 0, f"{name} exited with {child.returncode}:\n{child.stderr[-4000:]}"
        return json.loads(next(line for line in reversed(child.stdout.splitlines()) if line.startswith("{")))

    return run
