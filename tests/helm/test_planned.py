"""What ``r1 plan --emit helm-values`` prints is what the chart installs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from r1_cluster.catalog import model
from r1_cluster.plan import Plan
from r1_cluster.planner import Request, parse_fleet, parse_slo, plan
from r1_cluster.workload import load
from r1_serve.planning.emit import helm_values

CHART = Path(__file__).parents[2] / "helm"


def test_the_chart_renders_a_planned_fleet_with_its_budget_and_predictions() -> None:
    pytest.importorskip("helm_python")
    from r1_bench.chart.render import merge, render, values_file

    made = plan(Request(model("r1"), parse_fleet("16xH200"), load("math"), parse_slo("tpot_p95=50ms,ttfa_p95=5m")))
    values = yaml.safe_load(helm_values(made.plan, made.fleet))
    layers = (values_file(CHART / "values.yaml"), values_file(CHART / "values-r1-16xh200.yaml"), values)
    rendered = render(CHART, merge(*layers))
    plans = [
        Plan.from_yaml(text)
        for each in rendered.kind("ConfigMap")
        for text in each["data"].values()
        if "version: r1.plan/v1" in text
    ]
    assert made.plan in plans
    assert made.plan.limits.thinking.ceiling is not None
