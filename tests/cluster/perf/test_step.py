from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from r1_cluster.catalog import GPUS, MODELS
from r1_cluster.perf.batch import Batch, Speculation
from r1_cluster.perf.constants import fitted
from r1_cluster.perf.layout import Split
from r1_cluster.perf.step import Engine

R1 = MODELS["deepseek-r1"]
TP8 = Split(tensor=8, expert_tensor=8)
DP8 = Split(data=8, expert=8)


def engine(
    split: Split = TP8, gpu: str = "H200", framework: str = "sglang", name: str = "deepseek-r1", **options: Any
) -> Engine:
    return Engine.of(MODELS[name], GPUS[gpu], split, framework, **options)


def test_a_dense_model_decoding_one_sequence_streams_its_weights() -> None:
    llama = engine(Split(), name="r1-distill-llama-70b")
    time = llama.decode_seconds(1, 16)
    streamed = MODELS["r1-distill-llama-70b"].weight_bytes / GPUS["H200"].bandwidth
    assert streamed < time < 1.35 * streamed


def test_r1_decoding_one_sequence_is_above_the_bytes_a_token_touches() -> None:
    touched = R1.active_parameters / 8 / GPUS["H200"].bandwidth
    assert engine().decode_seconds(1, 16) > touched


@pytest.mark.parametrize("split", [TP8, DP8, Split(tensor=8, expert=8), Split(tensor=8, expert_tensor=8, pipeline=2)])
def test_a_step_takes_longer_with_more_sequences_and_with_longer_contexts(split: Split) -> None:
    some = engine(split)
    by_batch = [some.decode_seconds(batch, 2048) for batch in (8, 16, 64, 256, 1024)]
    assert by_batch == sorted(by_batch)
    by_context = [some.decode_seconds(64, context) for context in (1, 1024, 8192, 65536)]
    assert by_context == sorted(by_context)


def test_a_token_costs_less_the_more_decode_together() -> None:
    some = engine(DP8)
    each = [some.decode_seconds(batch, 2048) / batch for batch in (8, 64, 512)]
    assert each == sorted(each, reverse=True)


def test_faster_memory_decodes_faster() -> None:
    for split in (TP8, DP8):
        assert engine(split, "H200").decode_seconds(64, 4096) < engine(split, "H100").decode_seconds(64, 4096)


def test_prefill_grows_faster_than_the_prompt_and_a_prefix_hit_saves_most_of_it() -> None:
    some = engine()
    assert some.prefill_seconds(32768) > 4 * some.prefill_seconds(8192)
    assert some.prefill_seconds(1024, past=7168) < 0.3 * some.prefill_seconds(8192)
    assert some.prefill_seconds(1024, past=7168) > some.prefill_seconds(1024)


def test_mixing_a_prompt_into_a_decode_step_costs_less_than_a_step_of_its_own() -> None:
    mixed = engine(framework="trtllm")
    running = Batch.decodes(64, 2048)
    assert mixed.prefill_seconds(1024, decode=running) < mixed.prefill_seconds(1024)
    apart = engine(framework="sglang")
    assert apart.prefill_seconds(1024, decode=running) == apart.prefill_seconds(1024)


def test_chunks_cost_about_what_one_prefill_does() -> None:
    whole = engine()
    small = whole.constants.frameworks["sglang"].model_copy(update={"chunk": 2048})
    cut = replace(whole, constants=fitted().model_copy(update={"frameworks": {"sglang": small}}))
    assert whole.prefill_seconds(8192) < cut.prefill_seconds(8192) < 1.4 * whole.prefill_seconds(8192)


def test_pipeline_stages_hold_less_and_decode_a_token_no_faster() -> None:
    two = engine(Split(tensor=8, expert_tensor=8, pipeline=2))
    assert two.weight_bytes() < 0.6 * engine().weight_bytes()
    assert two.decode_seconds(2, 1024) > engine().decode_seconds(1, 1024)


def test_drafts_that_are_never_accepted_only_cost() -> None:
    plain = engine().decode_seconds(16, 2048)
    assert engine(speculation=Speculation(1, 0.0)).decode_seconds(16, 2048) > plain
    assert engine(speculation=Speculation(1, 0.85)).decode_seconds(16, 2048) < plain
    assert Speculation(3, 0.5).tokens_per_step == pytest.approx(1.875)


def test_the_layer_that_drafts_reads_the_prompts_too() -> None:
    plain, some = engine().prefill_seconds(8192), engine(speculation=Speculation(1, 0.85)).prefill_seconds(8192)
    assert 1 + 1 / 61 < some / plain < 1 + 2 / 61


def test_a_model_without_such_a_layer_drafts_nothing() -> None:
    with pytest.raises(ValueError, match="no layer that drafts"):
        Engine.of(MODELS["r1-distill-qwen-32b"], GPUS["H200"], Split(), "vllm", speculation=Speculation(1, 0.85))


def test_an_empty_step_takes_no_time() -> None:
    assert engine().seconds(Batch()) == 0


def test_the_weights_of_a_tensor_rank_are_an_eighth_and_what_is_repeated() -> None:
    eighth = R1.weight_bytes / 8
    assert eighth < engine().weight_bytes() < 1.02 * eighth
    assert engine(DP8).weight_bytes() > engine().weight_bytes()  # attention whole on each rank


def test_data_parallel_attention_holds_more_kv_than_repeating_it_on_tensor_ranks() -> None:
    assert engine(DP8).kv_tokens() > 3 * engine().kv_tokens() > 0


def test_weights_that_do_not_fit_leave_no_kv() -> None:
    assert engine(gpu="H100").kv_tokens() == 0
    assert engine(Split(tensor=16, expert_tensor=16), gpu="H100").kv_tokens() > 0


@pytest.mark.parametrize("bad", [{"tensor": 0}, {"tensor": 8, "expert": 4}])
def test_a_split_whose_parts_span_different_ranks_is_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="rank"):
        Split(**bad)


def test_an_unknown_framework_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match="'tgi': choose one of trtllm, sglang, vllm"):
        engine(framework="tgi")


@pytest.mark.parametrize("split", [TP8, DP8, Split(data=32, expert=32)])
@pytest.mark.parametrize("tokens", [1, 128, 8192])
def test_prompts_beside_running_sequences_always_take_time(split: Split, tokens: int) -> None:
    mixed = engine(split, framework="vllm")
    assert mixed.prefill_seconds(tokens, decode=Batch.decodes(4096, 1)) > 0
