"""vLLM's Triton experts as one call, for the benchmark beside ours."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch

from r1_kernels.fused_moe.op import Experts


def available() -> str | None:
    """vLLM's version where its GPU build can be imported, else None."""
    try:
        import vllm.model_executor.layers.fused_moe.fused_moe  # noqa: F401
        from vllm.platforms import current_platform
    except ImportError:
        return None
    return version("vllm") if current_platform.is_cuda() else None


def prepare(experts: Experts) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]:
    """A function of (x BF16 [M, H], weights [M, topk], ids [M, topk]): quantisation, alignment, GEMMs and sum."""
    from vllm.model_executor.layers.fused_moe.config import fp8_w8a8_moe_quant_config
    from vllm.model_executor.layers.fused_moe.fused_moe import fused_experts

    e = experts
    config = fp8_w8a8_moe_quant_config(w1_scale=e.w13_scale, w2_scale=e.w2_scale, block_shape=[128, 128])
    everywhere = e.w13_ENH.shape[0] if e.expert_map is None else e.expert_map.shape[0]

    def call(x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> Any:
        return fused_experts(
            x, e.w13_ENH, e.w2_EHI, weights, ids,
            global_num_experts=everywhere, expert_map=e.expert_map, quant_config=config,
        )  # fmt: skip

    return call
