"""Launch choice of the quantisation kernel, as a printable value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QuantTiles:
    """Rows a program takes of one group of 128, and its warps."""

    block_m: int
    num_warps: int


def quant_tiles(rows: int, groups: int) -> QuantTiles:
    """One row a program until rows × groups fill a GPU several times over; then eight, to have fewer to start."""
    return QuantTiles(8, 4) if rows * groups >= 8192 else QuantTiles(1, 1)
