"""Triton: quantise rows in groups of 128, optionally after SwiGLU. `group_scale` and `to_fp8` serve fused_moe too."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def group_scale(largest, UE8M0: tl.constexpr):
    """Scale of a group from its absolute maximum; see reference.scales. div_rn: bit-equal to the reference."""
    largest = tl.maximum(largest, 1e-10)
    scale = tl.div_rn(largest, tl.full(largest.shape, 448.0, tl.float32))
    if UE8M0:
        bits = scale.to(tl.int32, bitcast=True)
        scale = ((bits + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)
    return scale


@triton.jit
def to_fp8(scaled, dtype: tl.constexpr):
    """Saturate and round to e4m3."""
    return tl.minimum(tl.maximum(scaled, -448.0), 448.0).to(dtype)


@triton.jit
def quant_kernel(
    x_ptr,  # [M, K], with SWIGLU [M, 2K]: the gate, then up
    q_ptr,  # [M, K] e4m3
    scale_ptr,  # [M, K / 128] float32
    rows,
    K,
    SWIGLU: tl.constexpr,
    UE8M0: tl.constexpr,
    BM: tl.constexpr,
):
    """Program (i, g): rows i·BM… of group g."""
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    group = tl.program_id(1)
    column = group * 128 + tl.arange(0, 128)
    there = (row < rows)[:, None]
    if SWIGLU:
        at = row[:, None] * (2 * K) + column[None, :]
        gate = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32)
        x = gate * tl.sigmoid(gate) * tl.load(x_ptr + at + K, mask=there, other=0.0).to(tl.float32)
    else:
        x = tl.load(x_ptr + row[:, None] * K + column[None, :], mask=there, other=0.0).to(tl.float32)
    scale = group_scale(tl.max(tl.abs(x), 1), UE8M0)
    q = to_fp8(tl.div_rn(x, tl.broadcast_to(scale[:, None], x.shape)), q_ptr.dtype.element_ty)
    tl.store(q_ptr + row[:, None] * K + column[None, :], q, mask=there)
    tl.store(scale_ptr + row * (K // 128) + group, scale, mask=row < rows)
