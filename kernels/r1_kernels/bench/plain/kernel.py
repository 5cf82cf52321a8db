"""Triton: one grouped GEMM of block FP8 that writes a row a slot, as vLLM's fused_moe_kernel does."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def grouped_gemm_kernel(
    a_ptr,  # [rows, K]: tokens, or slots with ROWS_A_TOKEN = 1
    as_ptr,
    w_ptr,  # [E, N, K]
    ws_ptr,
    weights_ptr,  # [slots], with WEIGH
    slots_ptr, tiles_ptr, counts_ptr,
    c_ptr,  # [slots, N]
    N, K,
    ROWS_A_TOKEN: tl.constexpr, WEIGH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Program (tile, n); programs beyond the last tile end at once."""
    if tl.program_id(0) < tl.load(counts_ptr):
        tile = tiles_ptr + tl.program_id(0) * 3
        expert = tl.load(tile).to(tl.int64)
        position = tl.load(tile + 1) + tl.arange(0, BM)
        there = position < tl.load(tile + 2)
        slot = tl.load(slots_ptr + position, mask=there, other=0).to(tl.int64)
        row = slot // ROWS_A_TOKEN
        n = tl.program_id(1) * BN + tl.arange(0, BN)
        blocks = K // BK
        acc = tl.zeros([BM, BN], tl.float32)
        for block in range(0, blocks):
            k = (block * BK + tl.arange(0, BK))[None, :]
            a = tl.load(a_ptr + row[:, None] * K + k, mask=there[:, None], other=0.0)
            w = tl.load(w_ptr + expert * N * K + n[:, None] * K + k)
            a_scale = tl.load(as_ptr + row * blocks + block, mask=there, other=0.0)
            w_scale = tl.load(ws_ptr + (expert * (N // 128) + tl.program_id(1) * BN // 128) * blocks + block)
            acc += tl.dot(a, tl.trans(w)) * (a_scale * w_scale)[:, None]
        if WEIGH:
            acc *= tl.load(weights_ptr + slot, mask=there, other=0.0)[:, None]
        at = c_ptr + slot[:, None] * N + n[None, :]
        tl.store(at, acc.to(c_ptr.dtype.element_ty), mask=there[:, None])
