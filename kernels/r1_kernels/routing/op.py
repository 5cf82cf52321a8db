"""The routing operators: `route` for logits, `sort_slots` for ids that another router chose."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from r1_kernels import checks
from r1_kernels.counters import counters
from r1_kernels.launch import FUSE
from r1_kernels.routing.kernel import route_kernel, sort_kernel
from r1_kernels.routing.tiles import power_of_two, route_tiles, sort_tiles

LOGITS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Routed:
    """A token's experts. offsets [E_local + 1] and slots [M · topk] (int32) are there when one launch made them too."""

    weights_MT: torch.Tensor
    ids_MT: torch.Tensor
    offsets: torch.Tensor | None
    slots: torch.Tensor | None


@dataclass(frozen=True)
class Sorted:
    """Slots by local expert. All int32, on the device, nothing of it known to the host.

    offsets [E_local + 1]; slots [M · topk], the first offsets[-1] valid; tiles [bound, 3]: expert, first position and
    end of each block of `block_m` rows; counts [2]: tiles, active experts.
    """

    offsets: torch.Tensor
    slots: torch.Tensor
    tiles: torch.Tensor
    counts: torch.Tensor


def route(
    logits_ME: torch.Tensor,
    bias_E: torch.Tensor,
    *,
    groups: int,
    top_groups: int,
    topk: int,
    scale: float,
    local_experts: int | None = None,
    expert_map: torch.Tensor | None = None,
) -> Routed:
    """Grouped sigmoid routing of M tokens over E experts; at up to 64 tokens also sorted, in the same launch.

    Raises: ValueError for a wrong type, shape or layout, before any launch.
    """
    checks.tensor("logits", logits_ME, LOGITS, (None, None))
    tokens, experts = logits_ME.shape
    checks.tensor("bias", bias_E, (torch.float32,), (experts,), like=logits_ME)
    if experts != power_of_two(experts) or groups != power_of_two(groups) or experts % max(groups, 1):
        raise ValueError(f"experts, groups: expected powers of two, groups dividing experts; got {experts}, {groups}")
    per = experts // groups
    if not 1 <= top_groups <= groups or per < 2 or not 1 <= topk <= top_groups * per:
        raise ValueError(f"top_groups, topk: {top_groups} groups of {per} experts cannot give {topk} experts")
    owned = _owned(experts, local_experts, expert_map, logits_ME)
    ids = logits_ME.new_empty((tokens, topk), dtype=torch.int32)
    weights = logits_ME.new_empty((tokens, topk), dtype=torch.float32)
    if tokens == 0:
        return Routed(weights, ids, torch.zeros(owned + 1, dtype=torch.int32, device=ids.device), ids.view(0))
    tiles = route_tiles(tokens, topk)
    offsets = ids.new_empty(owned + 1) if tiles.sort else None
    slots = ids.new_empty(tokens * topk) if tiles.sort else None
    route_kernel[(tokens,)](
        logits_ME,
        bias_E,
        expert_map,
        weights,
        ids,
        offsets,
        slots,
        counters(logits_ME.device),
        tokens,
        owned,
        scale,
        EXPERTS=experts,
        GROUPS=groups,
        TOP_GROUPS=top_groups,
        TOPK=topk,
        TOPK_PAD=power_of_two(topk),
        HAS_MAP=expert_map is not None,
        SORT=tiles.sort,
        SLOTS=tiles.slots,
        BINS=max(16, power_of_two(owned)),
        BLOCK=tiles.block,
        num_warps=tiles.num_warps,
        **FUSE,
    )
    return Routed(weights, ids, offsets, slots)


def sort_slots(
    ids_MT: torch.Tensor, local_experts: int, block_m: int, *, expert_map: torch.Tensor | None = None
) -> Sorted:
    """Sort slots by local expert and cut them into blocks of `block_m` rows, in one launch.

    Ids must lie in the expert map, or below
    `local_experts` without one: they are on the device, so it is not checked here (see `fused_moe.op.require_ids`).
    Raises: ValueError for a wrong type, shape or layout, before any launch.
    """
    checks.tensor("ids", ids_MT, (torch.int32,), (None, None))
    if expert_map is not None:
        checks.tensor("expert_map", expert_map, (torch.int32,), (None,), like=ids_MT)
    total = ids_MT.numel()
    new = ids_MT.new_empty
    result = Sorted(
        offsets=new(local_experts + 1),
        slots=new(total),
        tiles=new((tile_bound(total, local_experts, block_m), 3)),
        counts=new(2),
    )
    tiles = sort_tiles(total, local_experts)
    sort_kernel[(local_experts,)](
        ids_MT,
        expert_map,
        result.offsets,
        result.slots,
        result.tiles,
        result.counts,
        total,
        local_experts,
        HAS_MAP=expert_map is not None,
        BM=block_m,
        BINS=tiles.bins,
        BLOCK=tiles.block,
        num_warps=tiles.num_warps,
        **FUSE,
    )
    return result


def tile_bound(slots: int, local_experts: int, block_m: int) -> int:
    """The most blocks `slots` can fall into: a ragged one for each expert that has any, and full ones."""
    return min(slots, min(slots, local_experts) + slots // block_m)


def _owned(experts: int, local_experts: int | None, expert_map: torch.Tensor | None, like: torch.Tensor) -> int:
    """Experts that live here. Without a map all do."""
    if expert_map is None:
        if local_experts not in (None, experts):
            raise ValueError(f"local_experts: {local_experts} of {experts} experts need an expert_map")
        return experts
    if local_experts is None:
        raise ValueError("local_experts: an expert_map needs the number of experts that live here")
    checks.tensor("expert_map", expert_map, (torch.int32,), (experts,), like=like)
    return local_experts
