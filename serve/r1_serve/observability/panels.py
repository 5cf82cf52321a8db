"""Grafana's dashboard JSON, as far as it is used here: rows of panels, each a few PromQL queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = 39  # Grafana 10.4 and newer
_WIDTH = 24  # of a dashboard, in Grafana's units
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}

Unit = Literal["short", "s", "percentunit", "reqps", "tokens/s", "none"]


@dataclass(frozen=True)
class Query:
    """``legend`` may name labels as ``{{model}}``."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """``limits``: values from which it is yellow and red."""

    title: str
    queries: tuple[Query, ...]
    why: str
    unit: Unit = "short"
    kind: Literal["timeseries", "stat", "heatmap"] = "timeseries"
    limits: tuple[float, float] | None = None
    width: int = 8


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Dashboard:
    """``uid`` is also the file's name. ``variables``: name to the metric and label that list its values."""

    uid: str
    title: str
    rows: tuple[Row, ...]
    variables: dict[str, tuple[str, str]] = field(default_factory=dict)

    def queries(self) -> list[str]:
        return [query.expr for row in self.rows for panel in row.panels for query in panel.queries]

    def as_json(self) -> dict[str, Any]:
        return {
            "uid": self.uid,
            "title": self.title,
            "tags": ["r1"],
            "schemaVersion": SCHEMA_VERSION,
            "editable": True,
            "refresh": "30s",
            "time": {"from": "now-3h", "to": "now"},
            "templating": {"list": [_datasource(), *(_variable(*item) for item in self.variables.items())]},
            "panels": _placed(self.rows),
        }


def _placed(rows: Sequence[Row], height: int = 8) -> list[dict[str, Any]]:
    """Every panel at its place: left to right, wrapped, rows below each other."""
    placed: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        place = {"x": 0, "y": y, "w": _WIDTH, "h": 1}
        placed.append({"id": len(placed) + 1, "type": "row", "title": row.title, "gridPos": place, "panels": []})
        x, y = 0, y + 1
        for panel in row.panels:
            if x + panel.width > _WIDTH:
                x, y = 0, y + height
            place = {"x": x, "y": y, "w": panel.width, "h": height}
            placed.append({"id": len(placed) + 1, "gridPos": place, **_panel(panel)})
            x += panel.width
        y += height
    return placed


def _panel(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.limits:
        steps += [{"color": "yellow", "value": panel.limits[0]}, {"color": "red", "value": panel.limits[1]}]
    defaults: dict[str, Any] = {
        "unit": "suffix:tok/s" if panel.unit == "tokens/s" else panel.unit,
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if panel.kind == "timeseries":
        defaults["min"] = 0
        defaults["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 8,
            "spanNulls": True,
            "thresholdsStyle": {"mode": "dashed" if panel.limits else "off"},
        }
    targets = [
        {
            "refId": chr(ord("A") + i),
            "datasource": _SOURCE,
            "expr": query.expr,
            "legendFormat": query.legend,
            "format": "heatmap" if panel.kind == "heatmap" else "time_series",
        }
        for i, query in enumerate(panel.queries)
    ]
    shown: dict[str, Any] = {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.why,
        "datasource": _SOURCE,
        "targets": targets,
    }
    if panel.kind == "heatmap":
        shown["options"] = {"calculate": False, "yAxis": {"unit": panel.unit}, "color": {"scheme": "Oranges"}}
        return shown
    shown["fieldConfig"] = {"defaults": defaults, "overrides": []}
    if panel.kind == "stat":
        shown["options"] = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"}
    else:
        shown["options"] = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    return shown


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}


def _variable(name: str, values: tuple[str, str]) -> dict[str, Any]:
    metric, label = values
    return {
        "name": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": f"label_values({metric}, {label})", "refId": "Variable"},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }
