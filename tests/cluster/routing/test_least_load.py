from __future__ import annotations

import dataclasses
from typing import Any

from r1_cluster.routing import Demand, RankView, policy

DEMAND = Demand(prompt_tokens=100, max_tokens=1000)


def rank(worker_id: str, **changes: Any) -> RankView:
    return dataclasses.replace(RankView(worker_id, max_num_seqs=8, max_waiting_requests=2), **changes)


def picked(*ranks: RankView) -> str | None:
    choice = policy("least_load").choose(DEMAND, ranks)
    return choice.rank.worker_id if choice.rank else None


def test_the_rank_with_fewer_requests_is_picked_wherever_it_stands() -> None:
    assert picked(rank("a", in_flight=3), rank("b", in_flight=2)) == "b"
    assert picked(rank("b", in_flight=2), rank("a", in_flight=3)) == "b"


def test_requests_count_against_the_size_of_the_rank() -> None:
    assert picked(rank("small", in_flight=3), rank("big", in_flight=4, max_num_seqs=64)) == "big"


def test_what_other_routers_sent_counts_once_reported() -> None:
    assert picked(rank("a", in_flight=1, running=4, waiting=1), rank("b", in_flight=2, running=2)) == "b"


def test_between_equal_loads_the_freer_kv_cache_wins() -> None:
    assert picked(rank("a", in_flight=1, kv_usage=0.9), rank("b", in_flight=1, kv_usage=0.2)) == "b"


def test_free_kv_never_outweighs_a_request() -> None:
    assert picked(rank("a", in_flight=1, kv_usage=0.0), rank("b", in_flight=0, kv_usage=0.5)) == "b"


def test_among_equals_the_one_picked_longest_ago_wins() -> None:
    assert picked(rank("a", last_pick=7), rank("b", last_pick=3)) == "b"
    assert picked(rank("b"), rank("a")) == "a"


def test_draining_ranks_are_left_out() -> None:
    assert picked(rank("a", draining=True), rank("b", in_flight=5)) == "b"
    assert picked(rank("a", draining=True)) is None


def test_a_rank_takes_what_it_runs_and_its_queue_and_no_more() -> None:
    assert picked(rank("a", in_flight=9)) == "a"
    assert picked(rank("a", in_flight=10)) is None


def test_no_ranks_pick_none() -> None:
    choice = policy("least_load").choose(DEMAND, ())
    assert choice.rank is None
    assert choice.explain() == "picked none; no ranks"


def test_every_choice_explains_itself() -> None:
    choice = policy("least_load").choose(
        DEMAND, (rank("a", in_flight=8), rank("b", draining=True), rank("c", in_flight=10))
    )
    assert choice.excluded == {"b": "draining", "c": "full"}
    assert choice.scores == {"a": {"few requests": 0.5, "free KV": 0.01}}
    assert choice.explain() == "picked a; a=0.510 (few requests 0.500, free KV 0.010); b out: draining; c out: full"
