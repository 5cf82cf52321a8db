"""Bytes of every rank against transformers' own modules, cut by hand as vLLM cuts them. Within 1 %."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from r1_cluster.catalog import GPUS, MODELS
from r1_cluster.perf.batch import Speculation
from r1_cluster.perf.layout import Split
from r1_cluster.perf.step import Engine
from r1_cluster.planner.memory import BLOCK, memory, overflow

# The checkpoints' config.json, as published.
R1 = {
    "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61,
    "num_attention_heads": 128, "num_key_value_heads": 128, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3, "kv_lora_rank": 512,
    "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280,
}  # fmt: skip
QWEN = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
DENSE = {
    "r1-distill-qwen-1.5b": ("Qwen2Config", (1536, 8960, 28, 12, 2, 151936)),
    "r1-distill-qwen-7b": ("Qwen2Config", (3584, 18944, 28, 28, 4, 152064)),
    "r1-distill-qwen-14b": ("Qwen2Config", (5120, 13824, 48, 40, 8, 152064)),
    "r1-distill-qwen-32b": ("Qwen2Config", (5120, 27648, 64, 40, 8, 152064)),
    "r1-distill-llama-8b": ("LlamaConfig", (4096, 14336, 32, 32, 8, 128256)),
    "r1-distill-llama-70b": ("LlamaConfig", (8192, 28672, 80, 64, 8, 128256)),
}
REPLICATED = ("q_a_proj", "kv_a_proj_with_mqa", "norm", "mlp.gate.")


@cache
def tensors(name: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """(name, shape) of every parameter of transformers' module, built on the meta device."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    if name in DENSE:
        kind, numbers = DENSE[name]
        config = getattr(transformers, kind)(**dict(zip(QWEN, numbers, strict=True)), tie_word_embeddings=False)
    else:
        config = transformers.DeepseekV3Config(**R1, tie_word_embeddings=False)
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(config)
    return tuple((key, tuple(value.shape)) for key, value in module.named_parameters())


def size(key: str, shape: tuple[int, ...], name: str) -> int:
    """Bytes: R1's projections are FP8 with a float32 scale a 128 x 128 block, all else is BF16."""
    count = math.prod(shape)
    if name in DENSE or len(shape) < 2 or any(part in key for part in ("embed", "lm_head", "mlp.gate.")):
        return 2 * count
    *stack, rows, columns = shape
    return count + 4 * math.prod(stack) * math.ceil(rows / 128) * math.ceil(columns / 128)


def shares(name: str, split: Split, kv_heads: int) -> Iterator[tuple[int, float]]:
    """(layer or -1 for embedding and 1000 for head, bytes on one rank) of every tensor."""
    for key, shape in tensors(name):
        whole = size(key, shape, name)
        layer = int(key.split(".")[2]) if ".layers." in key else -1 if "embed" in key else 1000
        cut: float = split.tensor
        if any(part in key for part in REPLICATED):
            cut = 1
        elif ".mlp.experts." in key:
            cut = split.expert_tensor * split.expert
        elif "k_proj" in key or "v_proj" in key:
            cut = min(split.tensor, kv_heads)
        yield layer, whole / cut


LAYOUTS: list[tuple[str, Split]] = [
    ("deepseek-r1", Split(tensor=8, expert_tensor=8)),
    ("deepseek-r1", Split(tensor=8, expert=8)),
    ("deepseek-r1", Split(data=8, expert=8)),
    ("deepseek-r1", Split(tensor=2, data=8, expert=16)),
    ("deepseek-r1", Split(tensor=8, expert_tensor=8, pipeline=2)),
    ("deepseek-r1", Split(tensor=4, expert_tensor=4, pipeline=4)),
    *((name, Split()) for name in DENSE),
    ("r1-distill-qwen-1.5b", Split(tensor=4, expert_tensor=4)),
    ("r1-distill-qwen-32b", Split(tensor=8, expert_tensor=8)),
    ("r1-distill-llama-70b", Split(tensor=4, expert_tensor=4, pipeline=2)),
]


@pytest.mark.parametrize(("name", "split"), LAYOUTS, ids=lambda value: str(value))
def test_the_weights_of_the_fullest_rank_are_transformers_tensors_cut_by_name(name: str, split: Split) -> None:
    model = MODELS[name]
    each = list(shares(name, split, getattr(model.attention, "kv_heads", 1)))
    ends, start = split.stages(model.layers), 0
    stages = []
    for stage, count in enumerate(ends):
        inside = set(range(start, start + count)) | ({-1} if stage == 0 else set())
        inside |= {1000} if stage == split.pipeline - 1 else set()
        stages.append(sum(part for layer, part in each if layer in inside))
        start += count
    counted = Engine.of(model, GPUS["H200"], split, "vllm").weight_bytes()
    assert counted == pytest.approx(max(stages), rel=0.002)


@pytest.mark.parametrize("name", ["deepseek-r1", *DENSE])
def test_all_weights_are_the_bytes_of_transformers_tensors(name: str) -> None:
    whole = sum(size(key, shape, name) for key, shape in tensors(name))
    assert MODELS[name].weight_bytes == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize(("layers", "stages", "cut"), [(61, 2, (31, 30)), (61, 4, (15, 15, 16, 15)), (80, 2, (40, 40))])
def test_pipeline_stages_are_cut_as_vllm_does(layers: int, stages: int, cut: tuple[int, ...]) -> None:
    assert Split(pipeline=stages).stages(layers) == cut


def engine(gpu: str = "H200", split: Split | None = None, **options: Any) -> Engine:
    return Engine.of(MODELS["deepseek-r1"], GPUS[gpu], split or Split(tensor=8, expert_tensor=8), "vllm", **options)


def test_the_parts_add_up_to_the_gpus_memory() -> None:
    found = memory(engine(), batched_tokens=8192, max_num_seqs=256)
    assert found.weights + found.workspace + found.kv_cache + found.reserve == GPUS["H200"].memory_bytes
    assert found.kv_tokens == found.kv_cache // (61 * 576 * 2) // BLOCK * BLOCK
    assert found.usable == GPUS["H200"].usable_bytes()


def test_an_fp8_cache_holds_twice_the_tokens_and_a_pipeline_stage_only_its_own_layers() -> None:
    plain, fp8 = (engine(kv_dtype=each).kv_bytes_per_token() for each in ("bfloat16", "fp8"))
    assert plain == 2 * fp8 == 61 * 576 * 2
    assert engine(split=Split(tensor=8, expert_tensor=8, pipeline=2)).kv_bytes_per_token() == 31 * 576 * 2


@pytest.mark.parametrize("split", [Split(tensor=8, expert_tensor=8), Split(tensor=2, data=8, expert=16)])
def test_the_layer_that_drafts_is_one_more_moe_layer_and_its_projection(split: Split) -> None:
    drafting = engine(split=split, speculation=Speculation(1, 0.85))
    last = sum(part for layer, part in shares("deepseek-r1", split, 1) if layer == 60)
    projection = 2 * (2 * 7168 * 7168 + 3 * 7168)  # whole on each rank; embedding and head are the model's
    more = drafting.weight_bytes() - engine(split=split).weight_bytes()
    assert more == pytest.approx(last + projection, rel=0.01)
    assert drafting.kv_bytes_per_token() == 62 * 576 * 2


def test_on_pipeline_stages_the_layer_that_drafts_is_the_last_ones_with_an_embedding_of_its_own() -> None:
    split, one = Split(tensor=8, expert_tensor=8, pipeline=2), Speculation(1, 0.85)
    plain, drafting = engine(split=split), engine(split=split, speculation=one)
    assert drafting.kv_bytes_per_token() == plain.kv_bytes_per_token()  # stages of 31 and 30 layers are 31 and 31
    embedding = MODELS["deepseek-r1"].embedding_bytes / 8
    alone = engine(speculation=one).weight_bytes() - engine().weight_bytes()
    assert drafting.weight_bytes() == pytest.approx(plain.weight_bytes() + alone + embedding, rel=1e-6)


def test_what_does_not_fit_says_its_sum() -> None:
    small = engine("H100")
    found = memory(small, batched_tokens=8192, max_num_seqs=256)
    assert found.short > 0
    assert found.kv_tokens == 0
    assert overflow(small, found) == ("TP8 on 8xH100: 681 GB of weights + 51.2 GB of workspace > 8 x 77.0 GB usable")
