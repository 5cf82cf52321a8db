"""``make chart-schema``: the chart's files that are made from types and from the catalog."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from r1_cluster.catalog.models import MODELS

from r1_bench.chart.values import schema

# Accelerators of one node (of one Kubernetes node: a GB200 compute tray has four of its domain's 72).
GPUS_PER_NODE = {"A100": 8, "H20": 8, "H800": 8, "H100": 8, "H200": 8, "B200": 8, "GB200": 4, "MI300X": 8}


def facts() -> str:
    """What the chart's checks must know of models and nodes, from the catalog."""
    models = {
        name: {"heads": found.heads, "experts": found.experts.routed if found.experts else 0}
        for name, found in sorted(MODELS.items())
    }
    return json.dumps({"models": models, "gpusPerNode": GPUS_PER_NODE}, indent=1) + "\n"


def generated() -> dict[str, str]:
    """Path below the chart to text."""
    return {"values.schema.json": schema(), "files/facts.json": facts()}


def main() -> None:
    for name, text in generated().items():
        (Path(sys.argv[1]) / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
