"""The dashboards are what the code makes, and ask only for metrics and labels that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from r1_cluster.plan import Plan
from r1_serve.observability.__main__ import files
from r1_serve.observability.dashboards import DASHBOARDS
from r1_serve.observability.panels import Dashboard
from r1_serve.router.server import Router
from r1_serve.settings import RouterSettings

ROOT = Path(__file__).parents[3]
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
METRIC = re.compile(r"\b(?:r1_\w+(?::\w+)*|r1:\w+(?::\w+)*|(?:ray_)?vllm[:_]\w+)")
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}


@pytest.fixture(scope="module")
def served() -> dict[str, set[str]]:
    """Every series name a router serves, with its labels."""
    registry = Router([Plan.load("nano-tp1")], RouterSettings(), CollectorRegistry()).metrics.registry
    found = {}
    for collector in registry._collector_to_names:
        for family in collector.collect():
            labels = set(getattr(collector, "_labelnames", None) or getattr(family, "_labelnames", None) or ())
            for suffix in _SUFFIXES.get(family.type, ("",)):
                found[family.name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    return found


def rules() -> Iterator[tuple[str, str]]:
    """Name and expression of every rule."""
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            yield rule.get("record") or rule["alert"], rule["expr"]


def recorded() -> set[str]:
    return {name for name, _ in rules() if ":" in name}


def vllm_names() -> set[str]:
    """What this vLLM can export, with the suffixes Prometheus adds, bare and through Ray."""
    found = find_spec("vllm")
    assert found is not None
    assert found.origin is not None
    source = (Path(found.origin).parent / "v1/metrics/loggers.py").read_text(encoding="utf-8")
    names = {
        name + suffix
        for name in re.findall(r'name="(vllm:\w+)"', source)
        for suffix in ("", "_total", "_bucket", "_sum", "_count")
    }
    return names | {"ray_" + name.replace(":", "_") for name in names}


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_a_dashboard_asks_only_for_metrics_that_are_served_or_recorded(
    dashboard: Dashboard, served: dict[str, set[str]]
) -> None:
    asked = {name for query in dashboard.queries() for name in METRIC.findall(query)}
    asked |= {metric for metric, _ in dashboard.variables.values()}
    assert asked
    assert asked <= set(served) | recorded()


def test_the_rules_read_only_metrics_that_are_served_recorded_or_vllms(served: dict[str, set[str]]) -> None:
    asked = {name for _, expression in rules() for name in METRIC.findall(expression)}
    assert asked <= set(served) | recorded() | vllm_names()


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_matchers_and_legends_name_labels_that_exist(dashboard: Dashboard, served: dict[str, set[str]]) -> None:
    known = set().union(*served.values()) | {"instance"}
    for panel in (panel for row in dashboard.rows for panel in row.panels):
        for query in panel.queries:
            assert set(re.findall(r"\{\{(\w+)\}\}", query.legend)) <= known
            for metric, matchers in re.findall(r"\b(r1_\w+)\{([^}]*)\}", query.expr):
                if metric in served:
                    assert set(re.findall(r"(\w+)=", matchers)) <= served[metric], query.expr
    for metric, label in dashboard.variables.values():
        assert label in served[metric]


def test_the_committed_files_are_what_make_observability_writes() -> None:
    for path, text in files(ROOT).items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, f"{path}: run make observability"


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_panels_do_not_overlap_and_fit_the_width(dashboard: Dashboard) -> None:
    taken: set[tuple[int, int]] = set()
    panels: list[dict[str, Any]] = json.loads(json.dumps(dashboard.as_json()))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
