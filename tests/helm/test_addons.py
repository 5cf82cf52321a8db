"""What the Prometheus operator, KEDA and the Gateway API serve is held against strict types, and against given CRDs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from r1_bench.chart import validate
from r1_bench.chart.matrix import VARIATIONS
from r1_bench.chart.render import Value, merge, render, values_file

CHART = Path(__file__).parents[2] / "helm"
CRDS = Path(__file__).parents[3] / "shared" / "data" / "kuberay"


def nano(variation: str) -> Value:
    return merge(values_file(CHART / "values-nano.yaml"), VARIATIONS[variation])


ADDONS = [
    ("ServiceMonitor", "monitoring", lambda spec: spec["endpoints"][0].update(intervall="15s"), "intervall"),
    ("ServiceMonitor", "monitoring", lambda spec: spec["endpoints"][0].update(interval="soon"), "soon"),
    ("PodMonitor", "monitoring", lambda spec: spec.pop("podMetricsEndpoints"), "podMetricsEndpoints"),
    ("PrometheusRule", "monitoring", lambda spec: spec["groups"][0].update(interval=30), "30"),
    ("ScaledObject", "keda", lambda spec: spec["triggers"][0]["metadata"].update(threshold=50), "50"),
    (
        "ScaledObject",
        "keda",
        lambda spec: spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleUp"].update(policy="Max"),
        "policy",
    ),
    ("HTTPRoute", "gateway", lambda spec: spec["rules"][0]["timeouts"].update(request="1 hour"), "1 hour"),
    ("GRPCRoute", "gateway", lambda spec: spec["rules"][0]["backendRefs"][0].pop("port"), "port"),
]


@pytest.mark.parametrize(("kind", "variation", "spoil", "named"), ADDONS, ids=[f"{a[0]}-{a[3]}" for a in ADDONS])
def test_what_an_add_on_would_refuse_is_seen(kind: str, variation: str, spoil: Any, named: str) -> None:
    rendered = render(CHART, nano(variation))
    thing = rendered.kind(kind)[0]
    assert validate.faults([thing], None) == []
    spoil(thing["spec"])
    assert any(named in fault for fault in validate.faults([thing], None))


def test_crds_of_add_ons_judge_too_where_they_are_given(tmp_path: Path) -> None:
    for file in validate.CRDS:
        shutil.copy(CRDS / file, tmp_path) if CRDS.exists() else pytest.skip(f"KubeRay's CRDs are not in {CRDS}")
    schema = {"type": "object", "properties": {"spec": {"type": "object", "required": ["jobLabel"]}}}
    crd = {
        "spec": {
            "group": "monitoring.coreos.com",
            "names": {"kind": "PodMonitor"},
            "versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}],
        }
    }
    (tmp_path / "podmonitors.yaml").write_text(yaml.safe_dump(crd), encoding="utf-8")
    found = validate.faults(render(CHART, nano("monitoring")).kind("PodMonitor"), validate.crds(tmp_path))
    assert any("jobLabel" in fault and "its CRD" in fault for fault in found)
