"""Rotate MLA's query slice and shared key with vLLM's CPU embedding as it comes, then with the piece."""

import json

import torch
from r1_serve.rehearsal import register, rotary
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

TOKENS, HEADS, NOPE, ROPE, LATENT = 7, 8, 32, 64, 512


def error(layout: str, *, neox: bool) -> float:
    """Largest difference from vLLM's own plain implementation. The layouts are those the two model families pass."""
    torch.manual_seed(0)
    positions = torch.randperm(128)[:TOKENS]
    with set_current_vllm_config(VllmConfig()):
        embedding = RotaryEmbedding(ROPE, ROPE, 128, 10000.0, neox, torch.float32)
    query = torch.randn(TOKENS, HEADS, NOPE + ROPE)[..., NOPE:]
    key = torch.randn(TOKENS, LATENT + ROPE)[:, LATENT:].unsqueeze(1)
    if layout == "dense":
        query, key, _ = torch.randn(TOKENS, (HEADS + 2 + 2) * ROPE).split([HEADS * ROPE, 2 * ROPE, 2 * ROPE], dim=-1)
    right = embedding.forward_native(positions, query.clone(), key.clone())
    got = embedding.forward_cpu(positions, query, key)
    return max(float((a - b).abs().max()) for a, b in zip(got, right, strict=True))


def errors() -> dict[str, float]:
    return {f"{layout}, {'neox' if neox else 'interleaved'}": error(layout, neox=neox)
            for layout in ("mla", "dense") for neox in (False, True)}  # fmt: skip


facts = {"needed": rotary.needed(), "upstream": errors()}
register()
facts |= {"with_piece": errors(), "needed_after": rotary.needed()}
upstream_was = RotaryEmbedding.forward_cpu
register()
facts["second_register_changes_nothing"] = RotaryEmbedding.forward_cpu is upstream_was
print(json.dumps(facts))
