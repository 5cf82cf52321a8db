"""The dashboards where no Grafana is: every panel's queries, asked of a Prometheus, as one page of plots.

``python -m r1_serve.observability.look http://127.0.0.1:9090 --minutes 15 --out dashboards.html``
"""

from __future__ import annotations

import argparse
import math
import re
import time
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import httpx

from r1_serve.observability.dashboards import DASHBOARDS
from r1_serve.observability.panels import Dashboard, Panel
from r1_serve.simulation.pages import STYLE
from r1_serve.simulation.svg import plot

Points = list[tuple[float, float]]
Labelled = tuple[dict[str, str], Points]
# A PromQL expression to its series: labels, and (seconds from the start, value).
Ask = Callable[[str], Sequence[Labelled]]

POINTS = 200
MOST_SERIES = 12  # of one panel: more would be a plot that nobody can read
TOP = "figure{vertical-align:top}"
NO_UNIT = {"short": "", "none": "", "percentunit": "share", "reqps": "requests/s"}
VARIABLES = {"$model": ".*", "$tenant": ".*"}


def asking(prometheus: str, minutes: float, now: float, http: httpx.Client) -> Ask:
    """Range queries over the last ``minutes``. Raises httpx.HTTPError."""
    span = 60 * minutes
    step = max(1.0, span / POINTS)

    def ask(expression: str) -> Sequence[Labelled]:
        for variable, value in VARIABLES.items():
            expression = expression.replace(variable, value)
        expression = expression.replace("$__rate_interval", f"{max(60, 4 * math.ceil(step))}s")
        given: dict[str, str | float] = {"query": expression, "start": now - span, "end": now, "step": step}
        answer = http.get(f"{prometheus}/api/v1/query_range", params=given)
        answer.raise_for_status()
        return [_series(each, now - span) for each in answer.json()["data"]["result"]]

    return ask


def _series(found: dict[str, Any], start: float) -> Labelled:
    points = [(float(at) - start, float(value)) for at, value in found["values"]]
    return found["metric"], [(at, value) for at, value in points if math.isfinite(value)]


def page(ask: Ask, dashboards: Sequence[Dashboard] = DASHBOARDS) -> tuple[str, list[str]]:
    """HTML, and the panels without data as ``dashboard: panel``."""
    parts, empty = [], []
    for dashboard in dashboards:
        parts.append(f"<h1>{escape(dashboard.title)}</h1>")
        for row in dashboard.rows:
            parts.append(f"<h2>{escape(row.title)}</h2>")
            for panel in row.panels:
                series = _panel(ask, panel)
                if not series:
                    empty.append(f"{dashboard.title}: {panel.title}")
                drawn = plot(
                    dict(list(series.items())[:MOST_SERIES]), x="seconds", y=NO_UNIT.get(panel.unit, panel.unit)
                )
                caption = f"<figcaption>{escape(panel.title)}</figcaption><p>{escape(panel.why)}</p>"
                parts.append(f"<figure>{caption}{drawn}</figure>")
    head = f'<!doctype html><meta charset="utf-8"><title>r1 dashboards</title><style>{STYLE}{TOP}</style>'
    return head + "".join(parts), empty


def _panel(ask: Ask, panel: Panel) -> dict[str, Points]:
    found: dict[str, Points] = {}
    for query in panel.queries:
        for labels, points in ask(query.expr):
            if points:
                name = query.legend
                for label in re.findall(r"{{(\w+)}}", name):
                    name = name.replace(f"{{{{{label}}}}}", labels.get(label, ""))
                found[name if name not in found else f"{name} {len(found)}"] = points
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prometheus")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--out", type=Path, default=Path("dashboards.html"))
    given = parser.parse_args()
    with httpx.Client(timeout=30, trust_env=False) as http:
        text, empty = page(asking(given.prometheus.rstrip("/"), given.minutes, time.time(), http))
    given.out.write_text(text, encoding="utf-8")
    print(f"{given.out}" + (f"; without data: {'; '.join(empty)}" if empty else ""))


if __name__ == "__main__":
    main()
