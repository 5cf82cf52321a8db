"""Workloads by name or from a file: YAML as written by ``Workload.to_yaml``, or a trace to fit one to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from r1_cluster.workload.fit import fit
from r1_cluster.workload.spec import Workload, WorkloadError
from r1_cluster.workload.traces import read

MIXES = Path(__file__).parent / "mixes"
TRACES = (".jsonl", ".csv", ".log")


def shipped() -> tuple[str, ...]:
    """Names of the workloads in the package."""
    return tuple(sorted(path.stem for path in MIXES.glob("*.yaml")))


def load(name_or_path: str) -> Workload:
    """A shipped workload, a YAML file, or one fitted to a trace (.jsonl, .csv, .log). Raises WorkloadError."""
    path = Path(name_or_path)
    if path.suffix in TRACES:
        return fit(read(path), name=_name(path.stem), source=name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = MIXES / f"{name_or_path}.yaml"
        if name_or_path not in shipped():
            known = ", ".join(shipped())
            text = f"no workload {name_or_path!r}: shipped are {known}, or give a .yaml file"
            raise WorkloadError(f"{text} or a trace ({', '.join(TRACES)})")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise WorkloadError(f"workload {name_or_path}: {getattr(e, 'strerror', None) or 'not UTF-8 text'}") from e
    return parse(text, source=name_or_path)


def parse(text: str, source: str = "workload") -> Workload:
    """Raises WorkloadError naming ``source`` and each faulty field."""
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise WorkloadError(f"{source}: not YAML: {' '.join(str(e).split())}") from e
    if not isinstance(value, dict):
        raise WorkloadError(f"{source}: expected a mapping at the top, got {type(value).__name__}")
    try:
        # Through JSON mode: YAML lists become tuples while strictness still refuses "8" for 8.
        return Workload.model_validate_json(json.dumps(value, default=str))
    except ValidationError as e:
        faults = "; ".join(f"{'.'.join(map(str, f['loc'])) or 'workload'}: {f['msg']}" for f in e.errors())
        raise WorkloadError(f"{source}: {faults}") from e


def _name(stem: str) -> str:
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in stem.lower())
    return kept.strip("._-")[:63] or "trace"
