"""Counts of parameters and bytes against transformers' own modules on the meta device, and published sizes."""

from __future__ import annotations

import pytest
from r1_cluster.catalog import MODELS, Architecture, GroupedAttention, model

R1 = MODELS["deepseek-r1"]


def on_meta(each: Architecture) -> int:
    """Parameters of transformers' module of the same config, built without memory."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    if each.experts:
        config = transformers.DeepseekV3Config()  # its defaults are the 671B checkpoint's
        assert (config.hidden_size, config.num_hidden_layers) == (each.hidden_size, each.layers)
    else:
        assert isinstance(each.attention, GroupedAttention)
        kind = transformers.Qwen2Config if each.attention.qkv_bias else transformers.LlamaConfig
        config = kind(
            vocab_size=each.vocab_size,
            hidden_size=each.hidden_size,
            intermediate_size=each.intermediate_size,
            num_hidden_layers=each.layers,
            num_attention_heads=each.heads,
            num_key_value_heads=each.attention.kv_heads,
            tie_word_embeddings=False,
        )
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", ["deepseek-r1", *(name for name in MODELS if "distill" in name)])
def test_parameters_are_those_of_transformers_own_module(name: str) -> None:
    assert MODELS[name].parameters == pytest.approx(on_meta(MODELS[name]), rel=1e-4)


def test_r1_has_671_billion_parameters_of_which_a_token_meets_37() -> None:
    assert R1.parameters / 1e9 == pytest.approx(671, rel=0.001)
    assert R1.active_parameters / 1e9 == pytest.approx(37, rel=0.02)


def test_the_checkpoints_bytes_are_the_published_files_without_their_headers() -> None:
    # The 163 weight files of deepseek-ai/DeepSeek-V3 sum to 688,586,727,753 bytes, 12 MB of it safetensors headers.
    assert R1.checkpoint_bytes == pytest.approx(688_586_727_753, rel=1e-4)
    assert R1.checkpoint_bytes < 688_586_727_753


def test_block_scales_add_four_bytes_for_each_128_by_128_block() -> None:
    assert R1.linear_bytes(256, 384) == 256 * 384 + 4 * 2 * 3
    assert R1.linear_bytes(129, 128) == 129 * 128 + 4 * 2
    assert MODELS["r1-distill-qwen-7b"].linear_bytes(256, 384) == 2 * 256 * 384


def test_mla_caches_576_values_a_token_and_layer_whatever_the_tensor_ranks() -> None:
    assert R1.kv_bytes_per_token("bfloat16") == 61 * 576 * 2
    assert R1.kv_bytes_per_token("fp8", tensor_parallel_size=8) == 61 * 576


def test_grouped_heads_are_split_over_tensor_ranks_until_one_is_left() -> None:
    llama = MODELS["r1-distill-llama-70b"]
    assert llama.kv_bytes_per_token() == 80 * 2 * 8 * 128 * 2
    assert llama.kv_bytes_per_token(tensor_parallel_size=8) == 80 * 2 * 128 * 2
    assert llama.kv_bytes_per_token(tensor_parallel_size=16) == 80 * 2 * 128 * 2


def test_a_prefills_scores_and_sums_are_two_flops_a_head_for_each_value_of_key_and_value() -> None:
    assert R1.attention.score_flops(R1.heads) == 2 * 128 * (192 + 128)


def test_a_dense_model_has_no_experts_to_weigh() -> None:
    qwen = MODELS["r1-distill-qwen-32b"]
    assert (qwen.moe_layers, qwen.expert_bytes, qwen.moe_bytes, qwen.router_bytes, qwen.mtp_bytes) == (0, 0, 0, 0, 0)
    assert qwen.weight_bytes == 2 * qwen.parameters


@pytest.mark.parametrize("name", ["deepseek-r1", "DeepSeek-R1", "deepseek-ai/DeepSeek-R1", "DEEPSEEK-R1-0528"])
def test_models_are_found_by_name_and_by_hub_id_whatever_the_case(name: str) -> None:
    assert model(name).hidden_size == 7168


def test_an_unknown_model_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match=r"'r2': choose one of deepseek-r1, .*r1-nano"):
        model("r2")
