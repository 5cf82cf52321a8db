"""What the engine core sends reaches the step hook as it is, and vLLM's own statistics where somebody reads them."""

from __future__ import annotations

from typing import Any

import pytest
from r1_serve.workers.outputs import Output, token_engine, token_processor
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.metrics.stats import IterationStats, PrefillStats


def request(name: str) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id=f"{name}-inside",
        external_req_id=name,
        prompt_token_ids=[1, 2, 3],
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=8, detokenize=False, output_kind=RequestOutputKind.DELTA),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


def output(name: str, *ids: int, finish: FinishReason | None = None, **more: Any) -> EngineCoreOutput:
    return EngineCoreOutput(f"{name}-inside", list(ids), finish_reason=finish, **more)


@pytest.mark.parametrize("observed", [False, True])
def test_outputs_come_under_the_callers_ids_until_the_request_ends(observed: bool) -> None:
    produced: list[Output] = []
    processor = token_processor(produced, observed=observed)
    for name in ("1", "2"):
        processor.add_request(request(name), None)
    first = output("1", 7, prefill_stats=PrefillStats())
    last = output("2", 8, 9, finish=FinishReason.STOP, prefill_stats=PrefillStats())
    left = processor.process_outputs([first, last], 1.0, IterationStats())
    assert produced == [("1", first), ("2", last)]
    assert (left.request_outputs, left.reqs_to_abort) == ([], [])
    assert list(processor.request_states) == ["1-inside"]


@pytest.mark.parametrize("observed", [False, True])
def test_an_aborted_requests_late_output_is_dropped(observed: bool) -> None:
    produced: list[Output] = []
    processor = token_processor(produced, observed=observed)
    processor.add_request(request("1"), None)
    assert processor.abort_requests(["1"], internal=False) == ["1-inside"]
    processor.process_outputs([output("1", 7)], 1.0, IterationStats())
    assert (produced, processor.get_num_unfinished_requests()) == ([], 0)


def test_vllms_own_statistics_are_kept_where_somebody_reads_them() -> None:
    for observed in (False, True):
        stats, processor = IterationStats(), token_processor([], observed=observed)
        processor.add_request(request("1"), None)
        done = output("1", 7, 8, finish=FinishReason.STOP, prefill_stats=PrefillStats(num_computed_tokens=3))
        processor.process_outputs([done], 1.0, stats)
        assert (stats.num_generation_tokens, len(stats.finished_requests)) == ((2, 1) if observed else (0, 0))


def test_an_engines_death_raises_nothing_here() -> None:
    processor = token_processor([], observed=False)
    processor.add_request(request("1"), None)
    processor.propagate_error(RuntimeError("no engine"))


def test_a_steps_end_is_told_once_even_without_outputs() -> None:
    steps: list[Any] = []
    _, step_logger = token_engine(lambda outputs, stats: steps.append((list(outputs), stats)), observed=False)
    logger = step_logger(None)
    logger.record("stats", None, mm_cache_stats=None, engine_idx=0)
    assert steps == [([], "stats")]
