"""How busy a rank is, from vLLM's own statistics."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from r1_serve.protos import fleet_pb2 as pb
from r1_serve.workers.translate import PREEMPTED


class RankLoad:
    """``now`` is the load after the last step. ``clock`` in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = pb.Load()
        self._clock = clock
        self._last_step: float | None = None

    def rest(self) -> None:
        """Nothing runs: the time until the next step is not a step."""
        self._last_step = None

    def step(self, scheduler: Any, outputs: Sequence[Any]) -> None:
        """One step's SchedulerStats and EngineCoreOutputs."""
        at, load = self._clock(), self.now
        running = int(scheduler.num_running_reqs)
        if self._last_step is not None:
            load.step_time_us = round((at - self._last_step) * 1e6)
        self._last_step = at if running else None
        load.running = running
        load.waiting = int(scheduler.num_waiting_reqs + scheduler.num_skipped_waiting_reqs)
        load.kv_usage = float(scheduler.kv_cache_usage)
        for output in outputs:
            load.generation_tokens_total += len(output.new_token_ids)
            if output.prefill_stats is not None:
                load.prompt_tokens_total += output.prefill_stats.num_computed_tokens
            if output.events:
                load.preemptions_total += sum(event.type == PREEMPTED for event in output.events)
        cached = scheduler.prefix_cache_stats
        if cached is not None:
            load.prefix_queries_total += int(cached.queries)
            load.prefix_hits_total += int(cached.hits)
        drafts = scheduler.spec_decoding_stats
        if drafts is not None:
            load.draft_tokens_total += drafts.num_draft_tokens
            load.accepted_draft_tokens_total += drafts.num_accepted_tokens
