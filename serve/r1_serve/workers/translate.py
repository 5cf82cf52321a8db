"""Between the fleet's messages and vLLM's."""

from __future__ import annotations

from typing import Any

from r1_serve.protos import fleet_pb2 as pb

QUEUED, SCHEDULED, PREEMPTED = 1, 2, 3  # vLLM's EngineCoreEventType

_FINISH = {
    "stop": pb.FINISH_STOP,
    "length": pb.FINISH_LENGTH,
    "abort": pb.FINISH_ABORT,
    "error": pb.FINISH_ERROR,
}


def engine_request(submit: pb.Submit) -> tuple[Any, Any]:
    """vLLM's prompt and sampling parameters. Raises vLLM's VLLMValidationError where it refuses a value."""
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input
    from vllm.sampling_params import RequestOutputKind

    asked = submit.sampling
    params = SamplingParams(
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        min_p=asked.min_p,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        repetition_penalty=asked.repetition_penalty,
        seed=asked.seed if asked.HasField("seed") else None,
        max_tokens=asked.max_tokens,
        min_tokens=asked.min_tokens,
        stop_token_ids=list(asked.stop_token_ids),
        ignore_eos=asked.ignore_eos,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    return tokens_input(list(submit.prompt_token_ids), cache_salt=submit.cache_salt or None), params


def is_refusal(e: Exception) -> bool:
    """Whether vLLM refuses this request, as it would anywhere; else the trouble is the engine's own."""
    from vllm.exceptions import VLLMClientError

    return isinstance(e, (ValueError, VLLMClientError))


def tell_start(delta: pb.Delta, output: Any) -> None:
    """Of the first EngineCoreOutput of a request: what it found in the prefix cache and how long it waited."""
    if output.prefill_stats is not None:
        delta.cached_tokens = max(0, output.prefill_stats.num_cached_tokens)
    times = {event.type: event.timestamp for event in reversed(output.events or ())}  # the first of each kind
    if QUEUED in times and SCHEDULED in times:
        delta.queue_time_us = max(0, int((times[SCHEDULED] - times[QUEUED]) * 1e6))


def tell_end(delta: pb.Delta, output: Any) -> None:
    """Of the last one: why it is."""
    delta.finish = _FINISH.get(str(output.finish_reason), pb.FINISH_ERROR)
    if delta.finish == pb.FINISH_ERROR:
        delta.error = "the engine could not go on with this request"
