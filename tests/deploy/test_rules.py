"""Prometheus' rules: promtool runs their cases; every alert has a case, a runbook and metrics that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from r1_serve import errors
from r1_serve.errors import R1Error

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
CASES = ("rules_test.yaml", "rules_days_test.yaml")
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((FOLDER / "rules.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus"
)


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize("cases", CASES)
def test_every_alert_fires_when_it_should_and_not_before(cases: str) -> None:
    promtool("test", "rules", cases)


@needs_promtool
def test_prometheus_accepts_the_rules_and_the_configuration() -> None:
    promtool("check", "rules", "rules.yaml")
    promtool("check", "config", "prometheus.yaml")


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    fires = set()
    for name in CASES:
        for case in yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))["tests"]:
            fires |= {alert["alertname"] for alert in case.get("alert_rule_test", ()) if alert["exp_alerts"]}
    assert fires == {rule["alert"] for rule in ALERTS}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_leads_to_a_runbook(rule: dict[str, Any]) -> None:
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert anchor in {heading.lower().replace(" ", "-") for heading in headings}
    assert rule["labels"]["severity"] in {"page", "ticket", "info"}
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"]


def test_faults_of_ours_are_the_errors_that_are_neither_the_clients_nor_the_loads() -> None:
    tree: dict[str, type[R1Error]] = {}
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, R1Error):
            tree[kind.reason] = kind
    fleet = {"attach_refused", "already_attached", "bad_frame", "fleet_token_wrong", "startup"}  # no client meets these
    load = {"fleet_saturated", "deadline_unreachable", "too_many_connections"}  # have alerts or metrics of their own
    faults = {reason for reason, kind in tree.items() if kind.http_status >= 500} - load - fleet
    clients = set(tree) - faults - load - fleet
    text = next(rule["expr"] for rule in RULES if rule.get("record") == "r1:request_fault:ratio_rate5m")
    found = [set(group.split("|")) for group in re.findall(r'outcome[=!]~"([^"]+)"', text)]
    assert found == [faults, clients]
