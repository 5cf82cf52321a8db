"""The comparison of routing policies, in small: deterministic, and won by thinking_aware."""

from __future__ import annotations

from typing import Any

import pytest
from r1_bench.policies import measure
from r1_bench.replay import replay
from r1_bench.simulated import Hardware
from r1_bench.thinking import questions
from r1_cluster.routing import SHIPPED
from r1_cluster.routing.dispatcher import Dispatcher

# Ranks with little KV, soon full: the forecast decides.
N, PER_SECOND, SMALL = 1200, 3.0, Hardware(kv_tokens=100_000)


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    names = ("least_load", "prefix_aware", "thinking_aware")
    return {name: measure(SHIPPED[name], N, PER_SECOND, seed=3, tenants_apart=True, hardware=SMALL) for name in names}


def test_a_replay_is_the_same_each_time() -> None:
    one, two = (measure(SHIPPED["thinking_aware"], 200, 6.0, seed=1, tenants_apart=False) for _ in range(2))
    assert {**one, "cpu_s": 0} == {**two, "cpu_s": 0}


@pytest.mark.parametrize("other", ["least_load", "prefix_aware"])
def test_thinking_aware_preempts_less_and_serves_better(rows: dict[str, dict[str, Any]], other: str) -> None:
    ours, theirs = rows["thinking_aware"], rows[other]
    assert ours["preemptions"] < theirs["preemptions"] / 2
    assert ours["tpot_ms_p99"] < theirs["tpot_ms_p99"]
    assert ours["goodput_per_s"] > theirs["goodput_per_s"]


def test_every_question_ends_once_with_all_its_tokens() -> None:
    """On ranks so small that thoughts are preempted all the time."""
    asked = list(questions(120, 20.0, seed=5, tenants_apart=False))
    hardware = Hardware(kv_tokens=60_000, max_num_seqs=16)
    done = replay(asked, Dispatcher(SHIPPED["least_load"].build()), gangs=1, ranks_per_gang=2, hardware=hardware)
    assert done.preemptions > 0
    assert sorted(job.question.number for job in done.jobs) == list(range(120))
    assert all(job.completion_tokens == job.total for job in done.jobs)
    assert all(job.question.at < job.first_token_at <= job.ended_at for job in done.jobs)
