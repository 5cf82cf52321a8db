"""Launch choices of the routing kernels, as printable values."""

from __future__ import annotations

from dataclasses import dataclass

FUSED_TOKENS = 64
"""Above it the last program's sort (slots² comparisons) costs more than a launch of its own."""


@dataclass(frozen=True)
class RouteTiles:
    """How route_kernel is launched: whether its last program sorts, slots a step of that sort, warps."""

    sort: bool
    slots: int
    block: int
    num_warps: int


@dataclass(frozen=True)
class SortTiles:
    """How sort_kernel is launched: slots a step, histogram bins, warps."""

    block: int
    bins: int
    num_warps: int


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least `n` (and at least 1)."""
    return 1 << max(0, n - 1).bit_length()


def route_tiles(tokens: int, topk: int) -> RouteTiles:
    """At decode sizes one launch does it all; four warps, since 512 slots are compared with 512."""
    if tokens > FUSED_TOKENS:
        return RouteTiles(False, 16, 16, 1)
    slots = max(16, power_of_two(tokens * topk))
    return RouteTiles(True, slots, min(16, slots), 4)


def sort_tiles(slots: int, local_experts: int) -> SortTiles:
    """Long steps for many slots: each step ends with a reduction over the program's warps."""
    return SortTiles(min(2048, max(128, power_of_two(slots))), max(16, power_of_two(local_experts)), 4)
