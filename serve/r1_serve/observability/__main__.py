"""``python -m r1_serve.observability ROOT``: write the dashboards and the chart's copies of them and of the rules."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from r1_serve.observability.dashboards import DASHBOARDS

RULES = Path("deploy/prometheus/rules.yaml")
RULES_COPY = Path("helm/files/rules/rules.yaml")
FOLDERS = (Path("deploy/grafana/dashboards"), Path("helm/files/dashboards"))


def files(root: Path) -> dict[Path, str]:
    """What is to be at which path below ``root``."""
    found = {RULES_COPY: (root / RULES).read_text(encoding="utf-8")}
    for dashboard in DASHBOARDS:
        text = json.dumps(dashboard.as_json(), indent=1) + "\n"
        found |= {folder / f"{dashboard.uid}.json": text for folder in FOLDERS}
    return found


def write(root: Path) -> None:
    for path, text in files(root).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
