"""Triton: two grouped GEMMs. `*_columns` for few tokens (a column a token, no sort), `*_sorted` for many (persistent).

Names: S slots = M tokens · TOPK; a slot is one token at one of its experts. I: the experts' width on this rank.
With SWAP the product is computed transposed, weights as the left operand: tensor cores take 64 rows of it at least,
and few tokens do not fill them while 128 weight rows do.
"""

from __future__ import annotations

import triton
import triton.language as tl

from r1_kernels.quant.kernel import group_scale, to_fp8
from r1_kernels.routing.kernel import local_ids


@triton.jit
def multiply(rows, w, acc, row_scale, w_scale, FP8: tl.constexpr, SWAP: tl.constexpr):
    """acc + rows · wᵀ (transposed with SWAP), rows [BM, BK], w [BN, BK]. A block of FP8 is scaled after its own dot:
    128 products a sum, which is also where DeepSeek promotes to float32."""
    if FP8:
        if SWAP:
            acc += tl.dot(w, tl.trans(rows)) * (row_scale * w_scale)[None, :]
        else:
            acc += tl.dot(rows, tl.trans(w)) * (row_scale * w_scale)[:, None]
    else:
        if SWAP:
            acc = tl.dot(w, tl.trans(rows), acc)
        else:
            acc = tl.dot(rows, tl.trans(w), acc)
    return acc


@triton.jit
def gate_up(
    x_ptr, xs_ptr, w_ptr, ws_ptr, token, there, expert, n0, first, last, H, I,
    FP8: tl.constexpr, SWAP: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Gate and up products over K blocks [first, last) of rows `token`, both [BN, BM] with SWAP, else [BM, BN]."""
    n = n0 + tl.arange(0, BN)
    k = tl.arange(0, BK)
    w_row = w_ptr + expert.to(tl.int64) * (2 * I) * H + n[:, None] * H
    x_row = x_ptr + token.to(tl.int64)[:, None] * H
    blocks = tl.cdiv(H, BK)
    s_at = expert.to(tl.int64) * (2 * I // 128) * blocks + (n0 // 128) * blocks
    A: tl.constexpr = BN if SWAP else BM
    B: tl.constexpr = BM if SWAP else BN
    gate = tl.zeros([A, B], tl.float32)
    up = tl.zeros([A, B], tl.float32)
    for block in range(first, last):
        kk = (block * BK + k)[None, :]
        if EVEN:
            x = tl.load(x_row + kk, mask=there[:, None], other=0.0)
            w_gate = tl.load(w_row + kk)
            w_up = tl.load(w_row + kk + I * H)
        else:
            x = tl.load(x_row + kk, mask=there[:, None] & (kk < H), other=0.0)
            inside = (n[:, None] < I) & (kk < H)
            w_gate = tl.load(w_row + kk, mask=inside, other=0.0)
            w_up = tl.load(w_row + kk + I * H, mask=inside, other=0.0)
        xs = 1.0
        s_gate = 1.0
        s_up = 1.0
        if FP8:
            xs = tl.load(xs_ptr + token.to(tl.int64) * blocks + block, mask=there, other=0.0)
            s_gate = tl.load(ws_ptr + s_at + block)
            s_up = tl.load(ws_ptr + s_at + (I // 128) * blocks + block)
        gate = multiply(x, w_gate, gate, xs, s_gate, FP8, SWAP)
        up = multiply(x, w_up, up, xs, s_up, FP8, SWAP)
    return gate, up


@triton.jit
def store_hidden(
    gate, up, h_ptr, hs_ptr, slot, there, n0, I,
    FP8: tl.constexpr, UE8M0: tl.constexpr, SWAP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The first GEMM's epilogue: silu(gate) · up, quantised again in its group of 128, to row `slot` of h."""
    hidden = gate * tl.sigmoid(gate) * up
    n = n0 + tl.arange(0, BN)
    row = slot.to(tl.int64)
    if SWAP:
        at = h_ptr + row[None, :] * I + n[:, None]
        mask = there[None, :] & (n[:, None] < I)
    else:
        at = h_ptr + row[:, None] * I + n[None, :]
        mask = there[:, None] & (n[None, :] < I)
    if FP8:
        scale = group_scale(tl.max(tl.abs(hidden), 0 if SWAP else 1), UE8M0)
        spread = tl.broadcast_to(scale[None, :] if SWAP else scale[:, None], hidden.shape)
        tl.store(at, to_fp8(tl.div_rn(hidden, spread), h_ptr.dtype.element_ty), mask=mask)
        tl.store(hs_ptr + row * (I // 128) + n0 // 128, scale, mask=there)
    else:
        tl.store(at, hidden.to(h_ptr.dtype.element_ty), mask=mask)


@triton.jit
def arrive(counter_ptr, SPLITS: tl.constexpr):
    """Whether this program is the last of SPLITS to come here. The last one sees what the others stored before."""
    tl.debug_barrier()
    last = tl.atomic_add(counter_ptr, 1, sem="acq_rel") == SPLITS - 1
    if last:
        tl.store(counter_ptr, 0)
    tl.debug_barrier()
    return last


@triton.jit
def gate_up_columns_kernel(
    x_ptr, xs_ptr, w_ptr, ws_ptr, ids_ptr, map_ptr,
    h_ptr,  # [S, I]
    hs_ptr,  # [S, I / 128]
    active_ptr,  # [R] int32: the active experts, ascending; with the next two, for the second GEMM
    inverse_ptr,  # [R, BM] int32: slot of (active expert, token), -1 where none
    counts_ptr,  # [2] int32, the second: active experts
    part_ptr,  # [R, I / BN, SPLITS, 2, BN, BM] float32, with SPLITS > 1
    arrived_ptr, tokens, H, I,
    TOPK: tl.constexpr, HAS_MAP: tl.constexpr, SLOTS: tl.constexpr, BINS: tl.constexpr,
    FP8: tl.constexpr, UE8M0: tl.constexpr, EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Program (r, n, s): the r-th active expert, found here from the ids, so that no launch sorts; BM >= tokens."""
    rank = tl.program_id(0)
    split = tl.program_id(2)
    ids = local_ids(ids_ptr, map_ptr, tl.arange(0, SLOTS), tokens * TOPK, HAS_MAP)
    active = (tl.histogram(tl.maximum(ids, 0), BINS, mask=ids >= 0) > 0).to(tl.int32)
    count = tl.sum(active, 0)
    writes = (tl.program_id(1) == 0) & (split == 0)
    if writes & (rank == 0):
        tl.store(counts_ptr + 1, count)
    if rank < count:
        this = (tl.cumsum(active, 0) == rank + 1) & (active > 0)
        expert = tl.sum(tl.where(this, tl.arange(0, BINS), 0), 0)
        token = tl.arange(0, BM)
        slot = tl.full([BM], -1, tl.int32)
        for choice in tl.static_range(TOPK):
            at = token * TOPK + choice
            slot = tl.where(local_ids(ids_ptr, map_ptr, at, tokens * TOPK, HAS_MAP) == expert, at, slot)
        there = slot >= 0
        if writes:
            tl.store(active_ptr + rank, expert)
            tl.store(inverse_ptr + rank * BM + token, slot)
        n0 = tl.program_id(1) * BN
        blocks = tl.cdiv(H, BK)
        share = tl.cdiv(blocks, SPLITS)
        first = split * share
        last = tl.minimum(first + share, blocks)
        gate, up = gate_up(
            x_ptr, xs_ptr, w_ptr, ws_ptr, token, there, expert, n0, first, last, H, I, FP8, True, EVEN, BM, BN, BK
        )  # fmt: skip
        if SPLITS == 1:
            store_hidden(gate, up, h_ptr, hs_ptr, slot, there, n0, I, FP8, UE8M0, True, BN)
        else:
            cell = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
            at = tl.arange(0, BN)[:, None] * BM + tl.arange(0, BM)[None, :]
            mask = tl.broadcast_to(there[None, :], [BN, BM])
            mine = part_ptr + cell.to(tl.int64) * SPLITS * 2 * BN * BM + at
            tl.store(mine + split * 2 * BN * BM, gate, mask=mask)
            tl.store(mine + (split * 2 + 1) * BN * BM, up, mask=mask)
            if arrive(arrived_ptr + cell, SPLITS):
                gate = tl.zeros([BN, BM], tl.float32)
                up = tl.zeros([BN, BM], tl.float32)
                for s in tl.static_range(SPLITS):  # always in this order: the same sum whoever was last
                    gate += tl.load(mine + s * 2 * BN * BM, mask=mask, other=0.0, cache_modifier=".cg")
                    up += tl.load(mine + (s * 2 + 1) * BN * BM, mask=mask, other=0.0, cache_modifier=".cg")
                store_hidden(gate, up, h_ptr, hs_ptr, slot, there, n0, I, FP8, UE8M0, True, BN)


@triton.jit
def down_columns_kernel(
    h_ptr, hs_ptr, w_ptr, ws_ptr, weights_ptr, active_ptr, inverse_ptr, counts_ptr,
    out_ptr,  # [M, H]
    part_ptr,  # [H / BN, SPLITS, BN, BM] float32, with SPLITS > 1
    arrived_ptr, tokens, H, I,
    FP8: tl.constexpr, EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Program (n, s): columns n·BN… of every token, summed over the active experts in registers; nothing to reduce."""
    n0 = tl.program_id(0) * BN
    split = tl.program_id(1)
    n = n0 + tl.arange(0, BN)
    k = tl.arange(0, BK)
    column = tl.arange(0, BM)
    blocks = tl.cdiv(I, BK)
    total = tl.load(counts_ptr + 1) * blocks
    share = tl.cdiv(total, SPLITS)
    acc = tl.zeros([BN, BM], tl.float32)
    for step in range(split * share, tl.minimum(split * share + share, total)):
        rank = step // blocks
        block = step % blocks
        expert = tl.load(active_ptr + rank).to(tl.int64)
        slot = tl.load(inverse_ptr + rank * BM + column)
        there = slot >= 0
        row = tl.maximum(slot, 0).to(tl.int64)
        kk = (block * BK + k)[None, :]
        w_at = w_ptr + expert * H * I + n[:, None] * I + kk
        if EVEN:
            h = tl.load(h_ptr + row[:, None] * I + kk, mask=there[:, None], other=0.0)
            w = tl.load(w_at)
        else:
            h = tl.load(h_ptr + row[:, None] * I + kk, mask=there[:, None] & (kk < I), other=0.0)
            w = tl.load(w_at, mask=(n[:, None] < H) & (kk < I), other=0.0)
        scale = tl.load(weights_ptr + row, mask=there, other=0.0)
        if FP8:
            scale *= tl.load(hs_ptr + row * blocks + block, mask=there, other=0.0)
            scale *= tl.load(ws_ptr + (expert * (H // 128) + n0 // 128) * blocks + block)
        acc += tl.dot(w, tl.trans(h)) * scale[None, :]
    out_at = out_ptr + column.to(tl.int64)[None, :] * H + n[:, None]
    inside = (column < tokens)[None, :] & (n[:, None] < H)
    if SPLITS == 1:
        tl.store(out_at, acc.to(out_ptr.dtype.element_ty), mask=inside)
    else:
        mine = part_ptr + tl.program_id(0).to(tl.int64) * SPLITS * BN * BM
        mine += tl.arange(0, BN)[:, None] * BM + column[None, :]
        tl.store(mine + split * BN * BM, acc, mask=inside)
        if arrive(arrived_ptr + tl.program_id(0), SPLITS):
            acc = tl.zeros([BN, BM], tl.float32)
            for s in tl.static_range(SPLITS):
                acc += tl.load(mine + s * BN * BM, mask=inside, other=0.0, cache_modifier=".cg")
            tl.store(out_at, acc.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def gate_up_sorted_kernel(
    x_ptr, xs_ptr, w_ptr, ws_ptr, slots_ptr, tiles_ptr, counts_ptr, h_ptr, hs_ptr, H, I,
    TOPK: tl.constexpr, FP8: tl.constexpr, UE8M0: tl.constexpr, EVEN: tl.constexpr,
    SWAP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Persistent: programs walk (tile, n), n fastest, so that those at work share rows, and an expert's tiles its
    weights, in L2. The number of tiles is read here: the host never learns it."""
    across = tl.cdiv(I, BN)
    for index in range(tl.program_id(0), tl.load(counts_ptr) * across, tl.num_programs(0)):
        tile = tiles_ptr + (index // across) * 3
        expert = tl.load(tile)
        position = tl.load(tile + 1) + tl.arange(0, BM)
        there = position < tl.load(tile + 2)
        slot = tl.load(slots_ptr + position, mask=there, other=0)
        n0 = (index % across) * BN
        gate, up = gate_up(
            x_ptr, xs_ptr, w_ptr, ws_ptr, slot // TOPK, there, expert, n0, 0, tl.cdiv(H, BK), H, I,
            FP8, SWAP, EVEN, BM, BN, BK,
        )  # fmt: skip
        store_hidden(gate, up, h_ptr, hs_ptr, slot, there, n0, I, FP8, UE8M0, SWAP, BN)


@triton.jit
def down_sorted_kernel(
    h_ptr, hs_ptr, w_ptr, ws_ptr, weights_ptr, ids_ptr, map_ptr, slots_ptr, tiles_ptr, counts_ptr,
    y_ptr,  # [S, H]: a slot's weighted row
    out_ptr,  # [M, H]
    arrived_ptr,  # [M, H / BN] int32 zeros: slots of a token that are done
    slots, H, I,
    TOPK: tl.constexpr, HAS_MAP: tl.constexpr, FP8: tl.constexpr, EVEN: tl.constexpr,
    SWAP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Persistent: programs walk (n, tile), tiles fastest, so that a strip of y is still in L2 when the last of a
    token's slots comes to that strip and adds all of them up, in the order of the token's choices."""
    A: tl.constexpr = BN if SWAP else BM
    B: tl.constexpr = BM if SWAP else BN
    down = tl.load(counts_ptr)
    across = tl.cdiv(H, BN)
    blocks = tl.cdiv(I, BK)
    k = tl.arange(0, BK)
    for index in range(tl.program_id(0), down * across, tl.num_programs(0)):
        strip = index // down
        tile = tiles_ptr + (index % down) * 3
        expert = tl.load(tile).to(tl.int64)
        position = tl.load(tile + 1) + tl.arange(0, BM)
        there = position < tl.load(tile + 2)
        slot = tl.load(slots_ptr + position, mask=there, other=0)
        row = slot.to(tl.int64)
        n = strip * BN + tl.arange(0, BN)
        w_row = w_ptr + expert * H * I + n[:, None] * I
        acc = tl.zeros([A, B], tl.float32)
        for block in range(0, blocks):
            kk = (block * BK + k)[None, :]
            hs = 1.0
            ws = 1.0
            if FP8:
                hs = tl.load(hs_ptr + row * blocks + block, mask=there, other=0.0)
                ws = tl.load(ws_ptr + (expert * (H // 128) + strip * BN // 128) * blocks + block)
            if EVEN:
                h = tl.load(h_ptr + row[:, None] * I + kk, mask=there[:, None], other=0.0)
                w = tl.load(w_row + kk)
            else:
                h = tl.load(h_ptr + row[:, None] * I + kk, mask=there[:, None] & (kk < I), other=0.0)
                w = tl.load(w_row + kk, mask=(n[:, None] < H) & (kk < I), other=0.0)
            acc = multiply(h, w, acc, hs, ws, FP8, SWAP)
        if SWAP:
            acc = tl.trans(acc)
        acc *= tl.load(weights_ptr + row, mask=there, other=0.0)[:, None]
        inside = (n < H)[None, :]
        tl.store(y_ptr + row[:, None] * H + n[None, :], acc.to(y_ptr.dtype.element_ty), mask=there[:, None] & inside)
        tl.debug_barrier()
        token = row // TOPK
        counter = arrived_ptr + token * across + strip
        done = tl.atomic_add(counter, 1, mask=there, sem="acq_rel") + 1
        needed = tl.zeros([BM], tl.int32)
        for choice in tl.static_range(TOPK):
            needed += (local_ids(ids_ptr, map_ptr, token * TOPK + choice, slots, HAS_MAP) >= 0).to(tl.int32)
        last = there & (done == needed)
        tl.debug_barrier()
        if tl.max(last.to(tl.int32), 0) > 0:
            total = tl.zeros([BM, BN], tl.float32)
            for choice in tl.static_range(TOPK):
                other = token * TOPK + choice
                local = last & (local_ids(ids_ptr, map_ptr, other, slots, HAS_MAP) >= 0)
                at = y_ptr + other[:, None] * H + n[None, :]
                total += tl.load(at, mask=local[:, None] & inside, other=0.0, cache_modifier=".cg").to(tl.float32)
            out_at = out_ptr + token[:, None] * H + n[None, :]
            tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=last[:, None] & inside)
