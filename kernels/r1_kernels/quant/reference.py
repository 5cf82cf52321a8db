"""Plain torch: quantise rows in groups of 128, round scales up to powers of two, and back."""

from __future__ import annotations

import torch

GROUP = 128
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
TINY = 1e-10
"""The least absolute maximum of a group, as in vLLM: a group of zeros keeps a finite scale."""


def scales(largest: torch.Tensor, ue8m0: bool) -> torch.Tensor:
    """Scale of a group from its absolute maximum: max/448, with `ue8m0` the least power of two not below it.

    Rounded on the bits of the float32, which is exact: adding all mantissa bits carries unless they were zero.
    """
    scale = largest.float().clamp(min=TINY) / FP8_MAX
    if not ue8m0:
        return scale
    bits = (scale.view(torch.int32) + 0x7FFFFF) & 0x7F800000
    return bits.view(torch.float32)


def quantise(x_MK: torch.Tensor, ue8m0: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """[M, K] to e4m3 [M, K] and float32 scales [M, K/128]; x ≈ q · scale."""
    rows, width = x_MK.shape
    grouped = x_MK.float().view(rows, width // GROUP, GROUP)
    scale = scales(grouped.abs().amax(-1), ue8m0)
    q = (grouped / scale[..., None]).clamp(-FP8_MAX, FP8_MAX).to(FP8)
    return q.view(rows, width), scale


def dequantise(q_MK: torch.Tensor, scale_MG: torch.Tensor) -> torch.Tensor:
    """Back to float32 [M, K]."""
    return q_MK.float() * scale_MG.repeat_interleave(GROUP, -1)


def dequantise_blocks(q_NK: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """A weight [..., N, K] in 128×128 blocks with float32 scales [..., N/128, K/128], to float32."""
    return q_NK.float() * scale.repeat_interleave(GROUP, -2).repeat_interleave(GROUP, -1)


def quantise_blocks(w: torch.Tensor, ue8m0: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [..., N, K] to e4m3 in 128×128 blocks, as DeepSeek's checkpoints store them."""
    *lead, n, k = w.shape
    blocks = w.float().view(*lead, n // GROUP, GROUP, k // GROUP, GROUP)
    scale = scales(blocks.abs().amax((-3, -1)), ue8m0)
    q = (blocks / scale[..., :, None, :, None]).clamp(-FP8_MAX, FP8_MAX).to(FP8)
    return q.view(w.shape), scale


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up in float32, of [..., 2I] with the gate first."""
    gate, up = gate_up.float().chunk(2, -1)
    return torch.nn.functional.silu(gate) * up
