"""A simulated gang: vLLM's scheduling, in closed form."""

from __future__ import annotations

import math

import pytest
from r1_cluster.simulator.costs import Linear
from r1_cluster.simulator.gang import Gang
from r1_cluster.simulator.job import Job
from r1_cluster.simulator.rank import Limits

COSTS = Linear(step_s=0.02, sequence_s=0.001, kv_token_s=1e-7, prompt_token_s=1e-4, kv_tokens=100_000)
LIMITS = Limits(max_num_seqs=64, max_num_batched_tokens=2048, prefix_caching=True)


class Driven:
    """A gang and the clock it is driven by."""

    def __init__(self, ranks: int = 1, costs: Linear = COSTS, limits: Limits = LIMITS) -> None:
        self.now = 0.0
        self.gang = Gang("g", ranks, costs, limits, lambda: self.now)
        self.ended: list[Job] = []
        self.events = 0

    def until(self, end: float = math.inf) -> None:
        while self.gang.due <= end and self.gang.due < math.inf:
            self.now = self.gang.due
            self.events += 1
            for job in self.gang.advance():
                self.ended.append(job)
                job.at = self.now  # when it ended

    def submit(self, job: Job, at: float = 0.0, rank: int = 0) -> Job:
        self.until(at)
        self.now = at
        self.gang.submit(job, rank, at)
        return job


def job(number: int, prompt: int = 100, thinking: int = 50, answer: int = 50, prefix: tuple[int, int] = (0, 0)) -> Job:
    return Job(number, 0.0, 0, prompt, thinking, answer, prefix)


def step_by_step(total: int, prompt: int) -> tuple[float, float]:
    """First token and end of one lone request, a step at a time."""
    first = now = COSTS.step_s + COSTS.prompt_token_s * prompt
    for generated in range(1, total):
        now += COSTS.step_s + COSTS.sequence_s + COSTS.kv_token_s * (prompt + generated)
    return first, now


def test_one_request_ends_when_it_would_step_by_step_in_a_handful_of_events() -> None:
    driven = Driven()
    done = driven.submit(job(1, prompt=1500, thinking=1000, answer=500))
    driven.until()
    first, end = step_by_step(1500, 1500)
    assert done.first_at == pytest.approx(first)
    assert done.at == pytest.approx(end, rel=1e-6)
    assert done.answer_at == pytest.approx(first + (end - first) * 1000 / 1499, rel=0.01)
    assert driven.events == 2
    assert driven.gang.tokens == done.completion_tokens == 1500


def test_an_arrival_joins_at_the_next_step_and_slows_the_others() -> None:
    driven = Driven()
    alone = driven.submit(job(1, thinking=500))
    driven.until(1.0)
    joining = driven.submit(job(2, thinking=100), at=1.0)
    driven.until()
    assert 1.0 < joining.first_at <= 1.0 + 0.0212 * 2 + 0.01
    assert alone.at > step_by_step(550, 100)[1]
    assert [each.number for each in driven.ended] == [2, 1]


def test_a_long_prompt_is_prefilled_in_chunks_beside_running_requests() -> None:
    driven = Driven()
    driven.submit(job(1, thinking=400))
    late = driven.submit(job(2, prompt=10_000), at=1.0)
    driven.until()
    assert late.first_at >= 1.0 + 10_000 * COSTS.prompt_token_s + 5 * COSTS.step_s - 1e-9


def test_a_full_cache_preempts_the_latest_which_loses_no_token() -> None:
    small = Linear(0.02, 0.001, 1e-7, 1e-4, kv_tokens=4000)
    driven = Driven(costs=small)
    jobs = [driven.submit(job(n, prompt=500, thinking=900, answer=100)) for n in range(4)]
    driven.until()
    assert driven.gang.preemptions > 0
    assert jobs[0].preemptions == 0, "the first to come is the last to go"
    assert sorted(each.number for each in driven.ended) == [0, 1, 2, 3]
    assert all(each.completion_tokens == each.total == 1000 for each in jobs)
    assert all(0 < each.first_at < each.answer_at < each.at for each in jobs)


def test_a_request_larger_than_the_cache_runs_alone_rather_than_never() -> None:
    driven = Driven(costs=Linear(0.02, 0.001, 1e-7, 1e-4, kv_tokens=600))
    driven.submit(job(1, prompt=500, thinking=300))
    driven.until()
    assert driven.ended[0].completion_tokens == 350


def test_a_prompt_seen_before_is_not_computed_again() -> None:
    driven = Driven()
    fresh = driven.submit(job(1, prompt=2000, prefix=(7, 1600)))
    driven.until()
    begun = driven.now + 10
    again = driven.submit(job(2, prompt=2000, prefix=(7, 1600)), at=begun)
    driven.until()
    assert fresh.first_at == pytest.approx(0.22)
    assert again.first_at - begun == pytest.approx(0.06, abs=0.002)
    assert driven.gang.cached_tokens == 1600
    other = Driven(limits=Limits(64, 2048, prefix_caching=False))
    for number in (1, 2):
        other.submit(job(number, prompt=2000, prefix=(7, 1600)), at=other.now)
        other.until()
    assert other.gang.cached_tokens == 0


def test_seats_are_limited_and_the_next_in_line_takes_a_free_one() -> None:
    driven = Driven(limits=Limits(2, 2048, prefix_caching=True))
    jobs = [driven.submit(job(n, thinking=50 + n)) for n in range(3)]
    driven.until()
    assert jobs[2].first_at >= jobs[0].at


def test_ranks_of_a_gang_step_together_at_the_pace_of_the_fullest() -> None:
    slow = Linear(0.02, 0.0, 1e-5, 1e-6, kv_tokens=100_000)
    apart, together = Driven(2, slow), Driven(1, slow)
    apart.submit(job(1, prompt=4000))
    light = apart.submit(job(2, prompt=10), rank=1)
    apart.until()
    lone = together.submit(job(2, prompt=10))
    together.until()
    assert light.at > 2 * lone.at


def test_a_failed_gang_gives_back_its_requests_with_what_they_had() -> None:
    driven = Driven()
    running, waiting = driven.submit(job(1, thinking=5000)), None
    driven.until(5.0)
    waiting = driven.submit(job(2), at=5.0)
    lost = driven.gang.fail()
    assert {each.number for each in lost} == {1, 2}
    assert running.completion_tokens == pytest.approx(5.0 / 0.0211, rel=0.05)
    assert waiting.completion_tokens == 0
    assert driven.gang.due == math.inf
    driven.submit(running, at=6.0)
    driven.until()
    assert running.completion_tokens == running.total


def test_progress_is_read_between_events_too() -> None:
    driven = Driven()
    long = driven.submit(job(1, thinking=3000))
    driven.until(1.0)
    driven.now = 20.0
    assert long.completion_tokens == pytest.approx(20.0 / 0.0211, rel=0.03)
    assert long.standing() == (long.completion_tokens, 0, True)


def test_an_idle_pause_is_not_counted_into_the_next_request() -> None:
    driven = Driven()
    driven.submit(job(1))
    driven.until()
    later = driven.submit(job(2, thinking=20), at=1000.0)
    driven.until()
    assert later.first_at - 1000.0 < 0.1
    assert later.answer_at - 1000.0 == pytest.approx(20 * 0.021, rel=0.2)
