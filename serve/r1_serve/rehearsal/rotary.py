"""Rotary embedding of tensors with a heads axis, on CPU.

vLLM's CPU kernel takes the stride of a tensor's last axis but one for the distance between tokens. That is right for
dense models, whose heads are flattened into one axis, and wrong for MLA, whose query is (tokens, heads, dim): beyond
the first token the kernel rotates the wrong numbers, and every answer of a DeepSeek-V3-shaped model is wrong without an
error. Flattening the heads first makes the same kernel right.
"""

from __future__ import annotations

from typing import Any

import torch


def needed() -> bool:
    """Whether the kernel rotates two tokens of two heads differently with the heads as an axis and flattened."""
    if _embedding().forward_cpu.__module__ == __name__:
        return False
    return not kernel_reads_heads()


def kernel_reads_heads() -> bool:
    """Ask the kernel itself, on eight numbers: microseconds, and right for any version of vLLM."""
    from vllm import _custom_ops as ops

    tokens, heads, dim = 2, 2, 2
    positions = torch.arange(1, 1 + tokens)
    angles = torch.arange(1.0 + tokens).unsqueeze(1)
    cache = torch.cat([angles.cos(), angles.sin()], dim=1)
    flat = torch.arange(1.0, 1.0 + tokens * heads * dim).view(tokens, heads * dim)
    with_heads = flat.clone().view(tokens, heads, dim)
    ops.rotary_embedding(positions, flat, None, dim, cache, False)
    ops.rotary_embedding(positions, with_heads, None, dim, cache, False)
    return bool(torch.equal(flat, with_heads.view_as(flat)))


def apply() -> None:
    embedding = _embedding()
    upstream = embedding.forward_cpu

    def forward_cpu(
        self: Any, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        rotated_query, rotated_key = upstream(
            self, positions, _flat(query, positions), None if key is None else _flat(key, positions)
        )
        return rotated_query.view(query.shape), None if key is None else rotated_key.view(key.shape)

    embedding.forward_cpu = forward_cpu


def _flat(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """``x`` with its heads flattened where they have an axis of their own; a copy where its strides demand one."""
    return x.flatten(-2) if x.dim() == positions.dim() + 2 else x


def _embedding() -> Any:
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

    return RotaryEmbedding
