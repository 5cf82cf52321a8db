"""The quantisation operators: `quantise` and `swiglu_quantise`."""

from __future__ import annotations

import torch

from r1_kernels import checks
from r1_kernels.launch import FUSE
from r1_kernels.quant.kernel import quant_kernel
from r1_kernels.quant.reference import FP8, GROUP
from r1_kernels.quant.tiles import quant_tiles

INPUTS = (torch.bfloat16, torch.float16, torch.float32)


def quantise(x_MK: torch.Tensor, *, ue8m0: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of [M, K] to e4m3 in groups of 128: (q [M, K], scale [M, K/128] float32), x ≈ q · scale.

    `ue8m0`: scales rounded up to powers of two, still stored as float32. Raises: ValueError.
    """
    checks.tensor("x", x_MK, INPUTS, (None, None))
    return _launch(x_MK, x_MK.shape[1], False, ue8m0)


def swiglu_quantise(gate_up: torch.Tensor, *, ue8m0: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """silu(gate) · up of [M, 2I] (the gate first) to e4m3: (q [M, I], scale [M, I/128] float32). Raises: ValueError."""
    checks.tensor("gate_up", gate_up, INPUTS, (None, None))
    checks.multiple("gate_up's width", gate_up.shape[1], 2 * GROUP)
    return _launch(gate_up, gate_up.shape[1] // 2, True, ue8m0)


def _launch(x: torch.Tensor, width: int, swiglu: bool, ue8m0: bool) -> tuple[torch.Tensor, torch.Tensor]:
    checks.multiple("width", width, GROUP)
    rows = x.shape[0]
    q = x.new_empty((rows, width), dtype=FP8)
    scale = x.new_empty((rows, width // GROUP), dtype=torch.float32)
    if rows:
        tiles = quant_tiles(rows, width // GROUP)
        grid = (-(-rows // tiles.block_m), width // GROUP)
        quant_kernel[grid](
            x, q, scale, rows, width, SWIGLU=swiglu, UE8M0=ue8m0, BM=tiles.block_m, num_warps=tiles.num_warps, **FUSE
        )
    return q, scale
