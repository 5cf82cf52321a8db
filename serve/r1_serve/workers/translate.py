"""Between the fleet's messages and vLLM's."""

from __future__ import annotations

from typing import Any

from r1_serve.protos import fleet_pb2 as pb

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


def delta(request_id: int, output: Any, *, first: bool) -> pb.Delta:
    """vLLM's RequestOutput of one step; the ``first`` one tells of the prefix cache and the queue too."""
    completion = output.outputs[0]
    made = pb.Delta(request_id=request_id, token_ids=completion.token_ids)
    if first:
        made.cached_tokens = max(0, output.num_cached_tokens or 0)
        times = output.metrics
        if times is not None and times.scheduled_ts:
            made.queue_time_us = max(0, int((times.scheduled_ts - times.queued_ts) * 1e6))
    if output.finished:
        made.finish = _FINISH.get(str(completion.finish_reason), pb.FINISH_ERROR)
        if made.finish == pb.FINISH_ERROR:
            made.error = "the engine could not go on with this request"
    return made
