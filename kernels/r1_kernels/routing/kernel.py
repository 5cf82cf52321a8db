"""Triton: route_kernel (a program a token; the last one sorts), sort_kernel (a program a local expert)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def first_max(values, index, BIG: tl.constexpr):
    """The highest value and the lowest index that has it (tl.argmax leaves ties to the shape of the reduction)."""
    best = tl.max(values, 0)
    return best, tl.min(tl.where(values == best, index, BIG), 0)


@triton.jit
def local_ids(ids_ptr, map_ptr, slot, slots, HAS_MAP: tl.constexpr):
    """Local expert of each slot, −1 where it lives elsewhere or the slot is beyond the last."""
    there = slot < slots
    ids = tl.load(ids_ptr + slot, mask=there, other=-1)
    if HAS_MAP:
        ids = tl.load(map_ptr + ids, mask=there & (ids >= 0), other=-1)
    return ids


@triton.jit
def write_tiles(tiles_ptr, expert, start, rows, first_tile, BM: tl.constexpr, BLOCK: tl.constexpr):
    """One expert's rows of the tile table: (expert, first position, end)."""
    for base in range(0, tl.cdiv(rows, BM), BLOCK):
        t = base + tl.arange(0, BLOCK)
        mine = t * BM < rows
        row = tiles_ptr + (first_tile + t) * 3
        tl.store(row, expert + t * 0, mask=mine)
        tl.store(row + 1, start + t * BM, mask=mine)
        tl.store(row + 2, start + rows + t * 0, mask=mine)


@triton.jit
def sort_kernel(
    ids_ptr,  # [slots] int32, global
    map_ptr,  # [E] int32: local slot or -1
    offsets_ptr,  # [E_local + 1] int32
    sorted_ptr,  # [slots] int32
    tiles_ptr,  # [bound, 3] int32
    counts_ptr,  # [2] int32: tiles, active experts
    slots,
    local_experts,
    HAS_MAP: tl.constexpr,
    BM: tl.constexpr,
    BINS: tl.constexpr,  # power of two >= E_local
    BLOCK: tl.constexpr,
):
    """Program e counts everybody (so none waits for another) and writes what belongs to expert e."""
    mine = tl.program_id(0)
    bins = tl.arange(0, BINS)
    counts = tl.zeros([BINS], tl.int32)
    for base in range(0, slots, BLOCK):
        ids = local_ids(ids_ptr, map_ptr, base + tl.arange(0, BLOCK), slots, HAS_MAP)
        counts += tl.histogram(tl.maximum(ids, 0), BINS, mask=ids >= 0)
    before = bins < mine
    tiles = (counts + BM - 1) // BM
    start = tl.sum(tl.where(before, counts, 0), 0)
    rows = tl.sum(tl.where(bins == mine, counts, 0), 0)
    tl.store(offsets_ptr + mine, start)
    if mine == 0:
        tl.store(offsets_ptr + local_experts, tl.sum(counts, 0))
        tl.store(counts_ptr, tl.sum(tiles, 0))
        tl.store(counts_ptr + 1, tl.sum((counts > 0).to(tl.int32), 0))
    if rows > 0:
        write_tiles(tiles_ptr, mine, start, rows, tl.sum(tl.where(before, tiles, 0), 0), BM, 16)
        at = start
        for base in range(0, slots, BLOCK):
            slot = base + tl.arange(0, BLOCK)
            hit = local_ids(ids_ptr, map_ptr, slot, slots, HAS_MAP) == mine
            ones = hit.to(tl.int32)
            tl.store(sorted_ptr + at + tl.cumsum(ones, 0) - ones, slot, mask=hit)
            at += tl.sum(ones, 0)


@triton.jit
def route_kernel(
    logits_ptr,  # [M, E]
    bias_ptr,  # [E] float32
    map_ptr,
    weights_ptr,  # [M, topk] float32
    ids_ptr,  # [M, topk] int32
    offsets_ptr,
    sorted_ptr,
    arrived_ptr,  # [1] int32, zero before and after
    tokens,
    local_experts,
    scale,
    EXPERTS: tl.constexpr,
    GROUPS: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    TOPK: tl.constexpr,
    TOPK_PAD: tl.constexpr,
    HAS_MAP: tl.constexpr,
    SORT: tl.constexpr,  # the last program to end also sorts all slots
    SLOTS: tl.constexpr,  # power of two >= M * TOPK, only with SORT
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    PER: tl.constexpr = EXPERTS // GROUPS
    index = tl.arange(0, EXPERTS)
    scores = tl.sigmoid(tl.load(logits_ptr + token * EXPERTS + index).to(tl.float32))
    biased = scores + tl.load(bias_ptr + index)

    grouped = tl.reshape(biased, [GROUPS, PER])
    member = tl.arange(0, PER)[None, :]
    best = tl.max(grouped, 1)
    first = tl.min(tl.where(grouped == best[:, None], member, PER), 1)
    second = tl.max(tl.where(member == first[:, None], float("-inf"), grouped), 1)
    group = tl.arange(0, GROUPS)
    ours = best + second
    # A row per group, a column per rival: rank = rivals that beat it, the lower index winning a tie.
    columns = tl.reshape(ours, [1, GROUPS])
    rows = tl.reshape(ours, [GROUPS, 1])
    beats = (columns > rows) | ((columns == rows) & (group[None, :] < group[:, None]))
    kept = tl.sum(beats.to(tl.int32), 1) < TOP_GROUPS
    left = tl.reshape(tl.where(kept[:, None], grouped, float("-inf")), [EXPERTS])

    choice = tl.arange(0, TOPK_PAD)
    chosen = tl.full([TOPK_PAD], 0, tl.int32)
    weight = tl.zeros([TOPK_PAD], tl.float32)
    for k in tl.static_range(TOPK):
        _, at = first_max(left, index, EXPERTS)
        chosen = tl.where(choice == k, at, chosen)
        weight = tl.where(choice == k, tl.sum(tl.where(index == at, scores, 0.0), 0), weight)
        left = tl.where(index == at, float("-inf"), left)
    weight = weight / (tl.sum(weight, 0) + 1e-20) * scale
    there = choice < TOPK
    tl.store(weights_ptr + token * TOPK + choice, weight, mask=there)
    tl.store(ids_ptr + token * TOPK + choice, chosen, mask=there)

    if SORT:
        tl.debug_barrier()
        arrived = tl.atomic_add(arrived_ptr, 1, sem="acq_rel")
        if arrived == tokens - 1:
            slots = tokens * TOPK
            everyone = tl.arange(0, SLOTS)
            ids = local_ids(ids_ptr, map_ptr, everyone, slots, HAS_MAP)
            counts = tl.histogram(tl.maximum(ids, 0), BINS, mask=ids >= 0)
            ends = tl.cumsum(counts, 0)
            bins = tl.arange(0, BINS)
            tl.store(offsets_ptr + bins, ends - counts, mask=bins < local_experts)
            tl.store(offsets_ptr + local_experts, tl.sum(counts, 0))
            tl.debug_barrier()
            for base in range(0, slots, BLOCK):
                slot = base + tl.arange(0, BLOCK)
                mine = local_ids(ids_ptr, map_ptr, slot, slots, HAS_MAP)
                earlier = (ids[None, :] == mine[:, None]) & (everyone[None, :] < slot[:, None])
                rank = tl.sum(earlier.to(tl.int32), 1)
                start = tl.load(offsets_ptr + mine, mask=mine >= 0, other=0)
                tl.store(sorted_ptr + start + rank, slot, mask=mine >= 0)
            tl.store(arrived_ptr, 0)
