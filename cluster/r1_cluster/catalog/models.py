"""The R1 family, from the checkpoints' config.json. Names are the ones users type; a hub id finds its model too."""

from __future__ import annotations

from dataclasses import replace

from r1_cluster.catalog.shapes import Architecture, Experts, GroupedAttention, LatentAttention

# huggingface.co/deepseek-ai/DeepSeek-R1/blob/main/config.json
_R1 = Architecture(
    name="deepseek-r1",
    checkpoint="deepseek-ai/DeepSeek-R1",
    hidden_size=7168,
    layers=61,
    heads=128,
    vocab_size=129280,
    intermediate_size=18432,
    max_position_embeddings=163840,
    attention=LatentAttention(
        q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
    ),
    experts=Experts(routed=256, shared=1, top_k=8, intermediate_size=2048, first_dense_layers=3),
    mtp_layers=1,
    weight_dtype="fp8_block",
)


def _qwen(
    size: str, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int = 152064
) -> Architecture:
    """huggingface.co/deepseek-ai/DeepSeek-R1-Distill-Qwen-*/blob/main/config.json (Qwen2: biases on q, k, v)."""
    return Architecture(
        name=f"r1-distill-qwen-{size}",
        checkpoint=f"deepseek-ai/DeepSeek-R1-Distill-Qwen-{size.upper()}",
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        vocab_size=vocab,
        intermediate_size=intermediate,
        max_position_embeddings=131072,
        attention=GroupedAttention(kv_heads=kv_heads, head_dim=128, qkv_bias=True),
    )


def _llama(size: str, hidden: int, intermediate: int, layers: int, heads: int) -> Architecture:
    """huggingface.co/deepseek-ai/DeepSeek-R1-Distill-Llama-*/blob/main/config.json (Llama 3.1 and 3.3)."""
    return Architecture(
        name=f"r1-distill-llama-{size}",
        checkpoint=f"deepseek-ai/DeepSeek-R1-Distill-Llama-{size.upper()}",
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        vocab_size=128256,
        intermediate_size=intermediate,
        max_position_embeddings=131072,
        attention=GroupedAttention(kv_heads=8, head_dim=128),
    )


# serve/r1_serve/nano/shape.py
_NANO = Architecture(
    name="r1-nano",
    checkpoint="builtin:r1-nano",
    hidden_size=192,
    layers=4,
    heads=8,
    vocab_size=512,
    intermediate_size=512,
    max_position_embeddings=2048,
    attention=LatentAttention(
        q_lora_rank=96, kv_lora_rank=512, qk_nope_head_dim=32, qk_rope_head_dim=64, v_head_dim=32
    ),
    experts=Experts(routed=32, shared=1, top_k=8, intermediate_size=64, first_dense_layers=1),
    weight_dtype="float32",
    mtp_layers=1,
)

MODELS: dict[str, Architecture] = {
    each.name: each
    for each in (
        _R1,
        replace(_R1, name="deepseek-r1-zero", checkpoint="deepseek-ai/DeepSeek-R1-Zero"),
        replace(_R1, name="deepseek-r1-0528", checkpoint="deepseek-ai/DeepSeek-R1-0528"),
        _qwen("1.5b", 1536, 8960, 28, 12, 2, vocab=151936),
        _qwen("7b", 3584, 18944, 28, 28, 4),
        _llama("8b", 4096, 14336, 32, 32),
        _qwen("14b", 5120, 13824, 48, 40, 8),
        _qwen("32b", 5120, 27648, 64, 40, 8),
        _llama("70b", 8192, 28672, 80, 64),
        _NANO,
    )
}


def model(name: str) -> Architecture:
    """Find a model by name or checkpoint, whatever the case. Raises ValueError that lists what there is."""
    wanted = name.lower()
    for each in MODELS.values():
        short = each.name.removeprefix("deepseek-"), each.name.removeprefix("r1-")  # r1, r1-0528, nano
        if wanted in (each.name, *short, each.checkpoint.lower(), each.checkpoint.lower().rpartition("/")[2]):
            return each
    raise ValueError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
