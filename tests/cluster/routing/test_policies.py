"""The shipped policies, their parts, and policies of one's own from configuration."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from r1_cluster.routing import SHIPPED, Demand, PolicyError, RankView, policy
from r1_cluster.routing.kv import HORIZONS, KvForecast
from r1_cluster.routing.parts import FILTERS, SCORERS
from r1_cluster.routing.spec import parse

DEMAND = Demand(prompt_tokens=1000, max_tokens=1000)


def flat(tokens: float) -> KvForecast:
    return KvForecast((tokens,) * len(HORIZONS))


def rank(worker_id: str, **changes: Any) -> RankView:
    base = RankView(worker_id, max_num_seqs=8, max_waiting_requests=2, kv_tokens=10_000, gang_id="g")
    return dataclasses.replace(base, **changes)


def picked(name: str, *ranks: RankView, demand: Demand = DEMAND) -> str | None:
    choice = policy(name).choose(demand, ranks)
    return choice.rank.worker_id if choice.rank else None


@pytest.mark.parametrize("name", SHIPPED)
def test_every_policy_leaves_draining_ranks_out_and_explains_itself(name: str) -> None:
    choice = policy(name).choose(DEMAND, (rank("a", draining=True), rank("b")))
    assert choice.rank is not None
    assert choice.rank.worker_id == "b"
    assert choice.excluded == {"a": "draining"}
    assert choice.explain().startswith("picked b; b=")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_policy_picks_nothing_of_nothing(name: str) -> None:
    assert picked(name) is None


@pytest.mark.parametrize("name", SHIPPED)
def test_every_scorers_points_lie_between_none_and_its_weight(name: str) -> None:
    extremes = (
        rank("empty"),
        rank("full", in_flight=7, kv_usage=1.0, kv_ahead=flat(9_000)),
        rank("wild", kv_usage=9.0, kv_tokens=0),
    )
    demand = Demand(1, 1, cached={"empty": 10_000})
    weights = dict(SHIPPED[name].scorers)
    for points in policy(name).choose(demand, extremes).scores.values():
        for scorer, value in points.items():
            assert 0 <= value <= weights[scorer]


def test_round_robin_goes_in_turn_whatever_the_load() -> None:
    assert picked("round_robin", rank("a", last_pick=2), rank("b", last_pick=1, in_flight=7)) == "b"


def test_prefix_aware_goes_where_the_prompt_is_unless_that_rank_is_far_busier() -> None:
    demand = DEMAND._replace(cached={"a": 900})
    assert picked("prefix_aware", rank("a", in_flight=3), rank("b"), demand=demand) == "a"
    assert picked("prefix_aware", rank("a", in_flight=3), rank("b"), demand=DEMAND) == "b"
    barely = DEMAND._replace(cached={"a": 64})
    assert picked("prefix_aware", rank("a", in_flight=3), rank("b"), demand=barely) == "b"


def test_thinking_aware_sees_the_growth_that_counts_do_not_show() -> None:
    few_long = rank("few long thoughts", in_flight=2, kv_ahead=flat(7_000))
    many_short = rank("many short calls", in_flight=4, kv_ahead=flat(1_000))
    assert picked("thinking_aware", few_long, many_short) == "many short calls"
    assert picked("least_load", few_long, many_short) == "few long thoughts"


def test_thinking_aware_holds_a_request_that_would_preempt_others() -> None:
    demand = DEMAND._replace(kv=flat(2_000))
    full = rank("a", in_flight=2, kv_ahead=flat(9_000))
    choice = policy("thinking_aware").choose(demand, (full,))
    assert choice.rank is None
    assert choice.excluded == {"a": "kv forecast"}
    assert picked("thinking_aware", full, rank("b", in_flight=2), demand=demand) == "b"


def test_what_has_begun_does_not_wait_where_waiting_is_only_advised() -> None:
    busy, full = rank("busy", in_flight=9, kv_ahead=flat(11_000)), rank("full", in_flight=10)
    own = policy("thinking_aware")
    assert own.choose(DEMAND, (busy, full)).rank is None
    insisted = own.choose(DEMAND, (busy, full), waits=False)
    assert insisted.rank is busy
    assert insisted.excluded == {"full": "full"}
    assert own.choose(DEMAND, (full, rank("leaving", draining=True)), waits=False).rank is None


def test_thinking_aware_gives_an_idle_rank_anything() -> None:
    assert picked("thinking_aware", rank("a"), demand=DEMAND._replace(kv=flat(50_000))) == "a"


def test_thinking_aware_lets_requests_wait_in_the_router_not_in_an_engine() -> None:
    assert picked("thinking_aware", rank("a", in_flight=8)) is None
    assert picked("least_load", rank("a", in_flight=8)) == "a"


def test_thinking_aware_puts_nothing_behind_a_full_batch_while_another_has_a_seat() -> None:
    seats = 32
    full = rank("full", max_num_seqs=seats, in_flight=seats, kv_tokens=1_000_000)
    busy = rank("busy", max_num_seqs=seats, in_flight=seats - 1, kv_tokens=1_000_000, kv_ahead=flat(900_000))
    assert picked("thinking_aware", full, busy) == "busy"
    over = dataclasses.replace(busy, in_flight=seats + 1)
    assert picked("thinking_aware", full, over) == "full", "a sixteenth more waits in the engines once all are full"


def test_thinking_aware_counts_what_other_routers_hold() -> None:
    other = rank("a", running=1, kv_usage=0.9)
    assert picked("thinking_aware", other, rank("b", running=1, kv_usage=0.2)) == "b"
    assert other.kv_of_others == 9_000
    assert rank("c", kv_usage=0.5, kv_ahead=flat(5_000)).kv_of_others == 0


def test_thinking_aware_forecasts_how_other_routers_requests_will_grow() -> None:
    """Ten of them are young: each will hold much more than now."""
    alive = np.array([1.0] * 7 + [0.0] * 5)  # for certain until 1,024 steps from now, no more after 2,048
    young = rank("a", in_flight=1, running=11, others=6, kv_usage=0.3, max_num_seqs=64)
    assert picked("thinking_aware", young, demand=DEMAND._replace(kv=flat(500))) == "a"
    assert picked("thinking_aware", young, demand=DEMAND._replace(kv=flat(500), others_alive=alive)) == "a"
    many = dataclasses.replace(young, others=10)
    assert picked("thinking_aware", many, demand=DEMAND._replace(kv=flat(500), others_alive=alive)) is None


def test_ranks_of_a_gang_are_kept_level_by_requests_too() -> None:
    few, many = rank("few", in_flight=1, kv_usage=0.2), rank("many", in_flight=4, kv_usage=0.2)
    scores = policy("thinking_aware").choose(DEMAND, (few, many)).scores
    assert scores["few"]["level"] == pytest.approx(2 * 0.75 / 2)
    assert scores["many"]["level"] == 0.0


def test_ranks_of_a_gang_are_kept_level() -> None:
    """Of two ranks with equal counts the one below its gang's fullest costs no one a slower step."""
    low = rank("low", in_flight=2, kv_usage=0.1)
    high = rank("high", in_flight=2, kv_usage=0.3)
    scores = policy("thinking_aware").choose(DEMAND, (low, high)).scores
    assert scores["low"]["level"] == pytest.approx(2 * 0.2 / 2)
    assert scores["high"]["level"] == 0.0
    assert picked("thinking_aware", high, low) == "low"


OWN = """
name: mine
filters: [draining]
scorers: {prefix: 2, few requests: 0.5}
margin: 0.1
"""


def test_a_policy_of_ones_own_is_a_few_lines_of_yaml(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(OWN)
    own = policy(str(path))
    assert own.name == "mine"
    assert [f.name for f in own.filters] == ["draining"]
    assert {s.name: s.weight for s in own.scorers} == {"prefix": 2.0, "few requests": 0.5}


def test_within_the_margin_ranks_are_equals_and_the_longest_unpicked_wins() -> None:
    own = parse(OWN)
    near = (rank("a", last_pick=5), rank("b", last_pick=1, in_flight=1))
    choice = own.choose(DEMAND, near)
    assert choice.rank is near[1]
    far = (rank("a", last_pick=5), rank("b", last_pick=1, in_flight=8))
    assert own.choose(DEMAND, far).rank is far[0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("prefix: 2", "luck: 2"), "no scorer 'luck': choose from few requests"),
        (("[draining]", "[lazy]"), "no filter 'lazy': choose from draining"),
        (("prefix: 2", "prefix: -2"), "greater than or equal to 0"),
        (("prefix: 2", 'prefix: "2"'), "valid number"),
        (("margin", "margins"), "margins: Extra inputs"),
        (("name: mine", "name: Mine!"), "name"),
        (("name: mine", "{"), "not YAML"),
    ],
)
def test_a_badly_written_policy_is_named_with_its_fault(change: tuple[str, str], named: str) -> None:
    with pytest.raises(PolicyError) as refused:
        parse(OWN.replace(*change), source="mine.yaml")
    assert str(refused.value).startswith("mine.yaml: ")
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unknown_policy_is_told_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(
        PolicyError, match="'best': choose one of least_load, prefix_aware, round_robin, thinking_aware"
    ):
        policy("best")
    with pytest.raises(PolicyError, match="No such file"):
        policy(str(tmp_path / "none.yaml"))


def test_every_part_is_used_by_a_shipped_policy() -> None:
    assert {name for spec in SHIPPED.values() for name in spec.filters} == set(FILTERS)
    assert {name for spec in SHIPPED.values() for name in spec.scorers} == set(SCORERS)
