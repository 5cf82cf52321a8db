"""A request reaches vLLM whole."""

from __future__ import annotations

from r1_serve.protos import fleet_pb2 as pb
from r1_serve.workers.translate import engine_request


def test_sampling_reaches_vllm_whole() -> None:
    asked = pb.Sampling(
        temperature=0.5, top_p=0.75, top_k=5, min_p=0.25, presence_penalty=1, frequency_penalty=-1,
        repetition_penalty=2, seed=0, max_tokens=9, min_tokens=2, stop_token_ids=[4], ignore_eos=True,
    )  # fmt: skip
    prompt, params = engine_request(pb.Submit(prompt_token_ids=[1, 2], sampling=asked, cache_salt="tenant"))
    assert (prompt["prompt_token_ids"], prompt["cache_salt"]) == ([1, 2], "tenant")
    for field in ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "seed"):
        assert getattr(params, field) == getattr(asked, field), field
    assert (params.repetition_penalty, params.max_tokens, params.min_tokens) == (2, 9, 2)
    assert (params.stop_token_ids, params.ignore_eos, params.detokenize) == ([4], True, False)


def test_no_seed_is_none_and_not_zero() -> None:
    asked = pb.Sampling(temperature=1, top_p=1, repetition_penalty=1, max_tokens=8)
    assert engine_request(pb.Submit(prompt_token_ids=[1], sampling=asked))[1].seed is None
