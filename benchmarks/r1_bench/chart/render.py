"""The chart through Helm's own engine: no cluster, no helm binary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import helm_python
import yaml

Value = dict[str, Any]
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where it is built
RELEASE, NAMESPACE = "r1", "r1-test"


class Refused(Exception):
    """Helm refused the values; the text is Helm's."""


def merge(*layers: Mapping[str, Any]) -> Value:
    """Values files as ``helm -f A -f B`` merges them: maps key by key, anything else by the last."""
    result: Value = {}
    for layer in layers:
        for key, value in layer.items():
            old = result.get(key)
            result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def values_file(path: Path) -> Value:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def render(chart: Path, values: Mapping[str, Any], *, name: str = RELEASE, namespace: str = NAMESPACE) -> Rendered:
    """Raises Refused where the schema or a check of the chart does."""
    try:
        with helm_python.Chart.load(chart) as loaded:
            loaded.validate_schema(dict(values))
            files = loaded.render(dict(values), name=name, namespace=namespace)
    except helm_python.HelmError as e:
        raise Refused(str(e)) from e
    return Rendered(files)


class Rendered:
    """What a release would apply: objects, tests and notes."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.notes = next((text for path, text in files.items() if path.endswith("NOTES.txt")), "")
        self.objects: list[Value] = []
        for path, text in sorted(files.items()):
            if not path.endswith("NOTES.txt"):
                self.objects += [each for each in yaml.load_all(text, Loader) if each]

    def kind(self, kind: str) -> list[Value]:
        return [each for each in self.objects if each["kind"] == kind]

    def one(self, kind: str, name: str | None = None) -> Value:
        found = [each for each in self.kind(kind) if name in (None, each["metadata"]["name"])]
        if len(found) != 1:
            raise LookupError(f"{len(found)} objects are {kind} {name or ''}")
        return found[0]
