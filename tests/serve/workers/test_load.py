"""A rank's load is what vLLM's statistics of each step say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from r1_serve.workers.load import RankLoad
from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType, EngineCoreOutput
from vllm.v1.metrics.stats import PrefillStats, SchedulerStats
from vllm.v1.spec_decode.metrics import SpecDecodingStats


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def scheduler(running: int = 1, waiting: int = 0, kv: float = 0.0) -> Any:
    return SimpleNamespace(
        num_running_reqs=running,
        num_waiting_reqs=waiting,
        num_skipped_waiting_reqs=1,
        kv_cache_usage=kv,
        prefix_cache_stats=SimpleNamespace(queries=10, hits=4),
        spec_decoding_stats=None,
    )


def test_the_last_step_tells_what_runs_and_waits_and_how_full_the_cache_is() -> None:
    load = RankLoad()
    load.step(scheduler(1), [])
    load.step(scheduler(3, 2, 0.5), [])
    assert (load.now.running, load.now.waiting, load.now.kv_usage) == (3, 3, 0.5)


def test_step_time_is_between_steps_of_a_busy_rank() -> None:
    clock = Clock()
    load, told = RankLoad(clock), []
    for at, running in ((1.0, 1), (1.02, 0), (9.0, 1), (9.03, 1)):
        clock.now = at
        load.step(scheduler(running), [])
        told.append(load.now.step_time_us)
    assert told == [0, 20_000, 20_000, 30_000]


def test_the_time_at_rest_is_not_a_step() -> None:
    clock = Clock()
    load = RankLoad(clock)
    load.step(scheduler(), [])
    load.rest()
    clock.now = 9.0
    load.step(scheduler(), [])
    assert load.now.step_time_us == 0


def test_the_counts_of_each_step_add_up() -> None:
    preempted = [EngineCoreEvent(EngineCoreEventType.PREEMPTED, 2.0), EngineCoreEvent(EngineCoreEventType.QUEUED, 2.0)]
    prefilled = EngineCoreOutput("1", [7], prefill_stats=PrefillStats(num_computed_tokens=5))
    load = RankLoad()
    for _ in range(2):
        load.step(scheduler(), [prefilled, EngineCoreOutput("2", [8, 9], events=preempted)])
    now = load.now
    assert (now.preemptions_total, now.generation_tokens_total, now.prompt_tokens_total) == (2, 6, 10)
    assert (now.prefix_queries_total, now.prefix_hits_total) == (20, 8)


def test_drafts_and_those_taken_add_up() -> None:
    load, stats = RankLoad(), SpecDecodingStats.new(1)
    for accepted in (1, 0, 1):
        stats.observe_draft(num_draft_tokens=1, num_accepted_tokens=accepted)
    for _ in range(2):
        load.step(SchedulerStats(spec_decoding_stats=stats), [])
    assert (load.now.draft_tokens_total, load.now.accepted_draft_tokens_total) == (6, 4)


def test_the_counts_are_fields_of_this_vllm() -> None:
    RankLoad().step(SchedulerStats(), [])
