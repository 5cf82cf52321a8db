"""The passes of vLLM's Triton experts one after the other: quantise, align, GEMM, SwiGLU and quantise, GEMM, sum."""

from __future__ import annotations

import torch

from r1_kernels.bench.plain.kernel import grouped_gemm_kernel
from r1_kernels.fused_moe.op import Experts
from r1_kernels.launch import FUSE
from r1_kernels.quant.op import quantise, swiglu_quantise
from r1_kernels.routing.op import Sorted, sort_slots


def plain_moe(x_MH: torch.Tensor, experts: Experts, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """BF16 [M, H] to BF16 [M, H] with vLLM's default tiles (16 rows a block while tokens ≤ experts, else 64).

    Block-FP8 experts only. Not vLLM's code: its alignment is two launches and its quantisation is in CUDA.
    """
    e = experts
    local, twice, hidden = e.w13_ENH.shape
    tokens, topk = ids.shape
    block_m = 16 if tokens <= local else 64
    table = sort_slots(ids, local, block_m, expert_map=e.expert_map)
    make = torch.empty if e.expert_map is None else torch.zeros  # rows of other ranks' slots are summed as well
    gate_up = make((tokens * topk, twice), dtype=torch.bfloat16, device=x_MH.device)
    rows = make((tokens * topk, hidden), dtype=torch.bfloat16, device=x_MH.device)
    _gemm(*quantise(x_MH), e.w13_ENH, e.w13_scale, None, table, gate_up, topk, block_m)
    _gemm(*swiglu_quantise(gate_up), e.w2_EHI, e.w2_scale, weights, table, rows, 1, block_m)
    return rows.view(tokens, topk, hidden).sum(1)


def _gemm(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    w: torch.Tensor,
    w_scale: torch.Tensor | None,
    weights: torch.Tensor | None,
    table: Sorted,
    out: torch.Tensor,
    rows_a_token: int,
    block_m: int,
) -> None:
    _, n, k = w.shape
    grouped_gemm_kernel[(table.tiles.shape[0], n // 128)](
        a, a_scale, w, w_scale, weights, table.slots, table.tiles, table.counts, out, n, k,
        ROWS_A_TOKEN=rows_a_token, WEIGH=weights is not None, BM=block_m, BN=128, BK=128,
        num_warps=4, num_stages=3, **FUSE,
    )  # fmt: skip
