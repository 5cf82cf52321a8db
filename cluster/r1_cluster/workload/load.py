"""Workloads by name or from a file: YAML as written by ``Workload.to_yaml``, or a trace to fit one to."""

from __future__ import annotations

from pathlib import Path

from r1_cluster.reading import read_text, read_yaml
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
    return parse(read_text(path, source=f"workload {name_or_path}", error=WorkloadError), source=name_or_path)


def parse(text: str, source: str = "workload") -> Workload:
    """Raises WorkloadError naming ``source`` and each faulty field."""
    return read_yaml(Workload, text, source=source, whole="workload", error=WorkloadError)


def _name(stem: str) -> str:
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in stem.lower())
    return kept.strip("._-")[:63] or "trace"
