"""What can be asked, and how the rest is refused."""

from __future__ import annotations

import pytest
from r1_cluster.planner import PlanningError, Slo, parse_budget, parse_fleet, parse_slo


@pytest.mark.parametrize(
    ("text", "options", "count", "nodes", "per_node", "domain"),
    [
        ("16xH200", {}, 16, 2, 8, 8),
        ("h200_sxm", {"nodes": 4}, 32, 4, 8, 8),
        ("4 x B200", {}, 4, 1, 4, 4),
        ("72xGB200", {}, 72, 18, 4, 72),
        ("8xH100", {"nodes": 2}, 8, 2, 4, 4),
        ("16xH100", {"per_node": 4}, 16, 4, 4, 4),
        ("16xH100", {"per_node": 16}, 16, 1, 16, 8),
        ("2xcpu", {}, 2, 1, 2, 2),
    ],
)
def test_a_fleet_is_gpus_in_nodes_with_a_domain(
    text: str, options: dict[str, int], count: int, nodes: int, per_node: int, domain: int
) -> None:
    fleet = parse_fleet(text, **options)
    assert (fleet.count, fleet.nodes, fleet.per_node, fleet.domain) == (count, nodes, per_node, domain)


@pytest.mark.parametrize(
    ("text", "options", "named"),
    [
        ("16xH300", {}, "unknown GPU 'H300'"),
        ("sixteen", {}, "unknown GPU"),
        ("16", {}, "write a count and a GPU"),
        ("0xH200", {}, "from 1 to"),
        ("99999xH200", {}, "from 1 to"),
        ("12xH200", {}, "do not fill nodes of 8"),
        ("16xH200", {"nodes": 3}, "3 nodes of 6 are 18"),
        ("16xH200", {"nodes": 0}, "--nodes is 0"),
        ("16xH200", {"nodes": 2, "per_node": 4}, "2 nodes of 4 are 8"),
    ],
)
def test_a_fleet_that_does_not_add_up_is_refused(text: str, options: dict[str, int], named: str) -> None:
    with pytest.raises(PlanningError, match=named):
        parse_fleet(text, **options)


def test_service_levels_take_units() -> None:
    assert parse_slo("ttfa_p95=1m, tpot_p95=50ms,TTFT_P95=2") == Slo(ttft_p95=2.0, ttfa_p95=60.0, tpot_p95=0.05)
    assert parse_slo(None) == parse_slo("") == Slo()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("ttfa_p95=1,ttft_p95=2", "contradicts itself: ttft_p95=2s is more than ttfa_p95=1s"),
        ("ttfa_p95=10ms,tpot_p95=50ms", "tpot_p95=0.05s is more than ttfa_p95"),
        ("tpot_p95=50", "write 50ms"),
        ("tpot_p95=0", "above 0"),
        ("tpot_p95=-1s", "above 0"),
        ("tpot_p95=nan", "above 0"),
        ("tpot_p95", "above 0"),
        ("tpot_p99=1s", "choose of ttft_p95, ttfa_p95, tpot_p95"),
        ("ttft_p95=1s,ttft_p95=2s", "twice"),
    ],
)
def test_service_levels_that_make_no_sense_are_refused(text: str, named: str) -> None:
    with pytest.raises(PlanningError, match=named):
        parse_slo(text)


def test_a_budget_is_none_or_tokens() -> None:
    assert (parse_budget("none"), parse_budget("8k"), parse_budget("12000")) == (None, 8192, 12000)
    for bad in ("0", "-1", "k", "lots"):
        with pytest.raises(PlanningError, match="--budget"):
            parse_budget(bad)
