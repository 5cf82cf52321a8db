"""Plain torch: expert by expert, dequantising the same FP8, accumulating in float32 (or float64)."""

from __future__ import annotations

import torch

from r1_kernels.quant.reference import dequantise, dequantise_blocks, quantise, swiglu


def fused_moe(
    x_MH: torch.Tensor,
    w13_ENH: torch.Tensor,
    w2_EHI: torch.Tensor,
    weights_MT: torch.Tensor,
    ids_MT: torch.Tensor,
    *,
    x_scale: torch.Tensor | None = None,
    w13_scale: torch.Tensor | None = None,
    w2_scale: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
    ue8m0: bool = False,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Sum over a token's local experts of weight · (silu(x·gate) · (x·up)) · down, [M, H] in `dtype`.

    With scales the operands are FP8, and the activation between the GEMMs is requantised in groups of 128 as the
    kernel does; without, it is rounded to the input's type.
    """
    out = torch.zeros(x_MH.shape[0], w2_EHI.shape[1], dtype=dtype, device=x_MH.device)
    x = (dequantise(x_MH, x_scale) if x_scale is not None else x_MH).to(dtype)
    local = expert_map.long()[ids_MT.long()] if expert_map is not None else ids_MT.long()
    for expert in local.unique().tolist():
        if expert < 0:
            continue
        token, choice = (local == expert).nonzero(as_tuple=True)
        w13, w2 = w13_ENH[expert], w2_EHI[expert]
        if w13_scale is not None and w2_scale is not None:
            w13, w2 = dequantise_blocks(w13, w13_scale[expert]), dequantise_blocks(w2, w2_scale[expert])
        hidden = swiglu_in(dtype, x[token] @ w13.to(dtype).T)
        if x_scale is not None:
            hidden = dequantise(*quantise(hidden.float(), ue8m0)).to(dtype)
        else:
            hidden = hidden.to(x_MH.dtype).to(dtype)
        out.index_add_(0, token, (hidden @ w2.to(dtype).T) * weights_MT[token, choice, None].to(dtype))
    return out


def swiglu_in(dtype: torch.dtype, gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up of [rows, 2I] in `dtype`."""
    if dtype == torch.float32:
        return swiglu(gate_up)
    gate, up = gate_up.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up
