"""Tile choice of the two grouped GEMMs: a printable value from one function, `choose`.

From the tuned table of the GPU where it has the shape (tuned/<gpu>.json, written by `bench.tune`), else by reasoning:

- Up to 32 tokens weights are the traffic. A product is computed transposed, 128 weight rows against 16 or 32 columns,
  so that it fills a tensor core's rows; K is split until there are about two programs an SM, each with four K blocks
  at least.
- Beyond, slots are sorted; a block takes 16, 32 or 64 rows, about as many as an expert has, so that few are empty. From
  64 rows on they are the left operand. 128 rows would re-read weights from L2 half as often, and spill.

Warps and stages are what `make kernels-aot` showed to fit without spilling: two programs an SM where it can be.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from r1_kernels.routing.tiles import power_of_two

COLUMN_TOKENS = 32
TUNED = Path(__file__).with_name("tuned")
Regime = Literal["few", "middle", "many"]


@dataclass(frozen=True)
class Shape:
    """What the choice depends on: M tokens · topk, experts here and in all, hidden and expert width, FP8 or BF16."""

    tokens: int
    topk: int
    local_experts: int
    experts: int
    hidden: int
    width: int
    fp8: bool

    @property
    def local_slots(self) -> float:
        """Slots that come here, when routing is even."""
        return self.tokens * self.topk * self.local_experts / self.experts

    @property
    def active_experts(self) -> float:
        """Experts here that have a token, when routing is even: a token takes each with probability topk/experts."""
        return self.local_experts * (1 - (1 - self.topk / self.experts) ** self.tokens)

    @property
    def key(self) -> str:
        """The row of a tuned table, without tokens."""
        kind = "fp8" if self.fp8 else "bf16"
        return f"{kind},E={self.local_experts}/{self.experts},topk={self.topk},H={self.hidden},I={self.width}"


@dataclass(frozen=True)
class Gpu:
    """What of a GPU the choice depends on."""

    name: str
    multiprocessors: int


H100 = Gpu("NVIDIA H100", 132)


@dataclass(frozen=True)
class Tile:
    """One GEMM's: rows (or columns of tokens), weight rows, K block, K splits, weights left, warps, stages."""

    block_m: int
    block_n: int
    block_k: int
    splits: int = 1
    swap: bool = True
    num_warps: int = 4
    num_stages: int = 3


@dataclass(frozen=True)
class MoeTiles:
    """The whole choice: regime, a tile for each GEMM, persistent programs an SM, and where it comes from."""

    regime: Regime
    gate_up: Tile
    down: Tile
    programs_per_sm: int = 2
    source: str = "reasoned"


def choose(shape: Shape, gpu: Gpu = H100) -> MoeTiles:
    """The tiles for one call. Pure, but for reading the GPU's table once."""
    tuned = _tuned(gpu.name).get(shape.key)
    if tuned:
        nearest = min(tuned, key=lambda tokens: abs(math.log2(tokens / max(1, shape.tokens))))
        candidate = tuned[nearest]
        if _fits(candidate, shape):
            return candidate
    return _few(shape, gpu) if shape.tokens <= COLUMN_TOKENS else _sorted(shape)


def _fits(tiles: MoeTiles, shape: Shape) -> bool:
    """Whether a tuned choice for other tokens is right (not only fast) for these."""
    return tiles.regime != "few" or shape.tokens <= min(tiles.gate_up.block_m, tiles.down.block_m)


def _few(shape: Shape, gpu: Gpu) -> MoeTiles:
    columns = max(16, power_of_two(shape.tokens))
    block_k = 128 if shape.fp8 else 64
    up_n, down_n = (128, 128) if shape.fp8 else (64, 128)
    active = max(1.0, shape.active_experts)
    up_programs = active * math.ceil(shape.width / up_n)
    up_splits = _splits(2 * gpu.multiprocessors / up_programs, math.ceil(shape.hidden / block_k))
    down_steps = active * math.ceil(shape.width / block_k)
    down_programs = math.ceil(shape.hidden / down_n)
    down_splits = _splits(4 * gpu.multiprocessors / down_programs, down_steps)
    # Loads of weights depend on a load of the expert's number, which takes two of the pipeline's stages per step.
    return MoeTiles(
        "few",
        Tile(columns, up_n, block_k, up_splits, num_warps=4 if columns == 16 else 8, num_stages=3),
        Tile(columns, down_n, block_k, down_splits, num_warps=4, num_stages=8),
    )


def _splits(wanted: float, steps: float) -> int:
    """The power of two at or below `wanted` that leaves each split four K blocks, between 1 and 8."""
    most = min(wanted, steps / 4, 8.0)
    return 1 << int(math.log2(most)) if most >= 1 else 1


def _sorted(shape: Shape) -> MoeTiles:
    rows = shape.local_slots / shape.local_experts
    block_k = 128 if shape.fp8 else 64
    up_n = 128 if shape.fp8 else 64
    if rows > 32:
        up = Tile(64, up_n, block_k, swap=False, num_warps=8, num_stages=4)
        return MoeTiles("many", up, Tile(64, 128, block_k, swap=False, num_warps=8, num_stages=3))
    block_m = 16 if rows <= 12 else 32
    up = Tile(block_m, up_n, block_k, num_warps=4 if block_m == 16 else 8)
    return MoeTiles("middle", up, Tile(block_m, 128, block_k, num_stages=4 if shape.width > 512 else 3))


@cache
def _tuned(gpu: str) -> dict[str, dict[int, MoeTiles]]:
    """The table of a GPU: {shape key: {tokens: tiles}}; empty where none was measured."""
    path = TUNED / f"{gpu.replace(' ', '_')}.json"
    if not path.is_file():
        return {}
    table = json.loads(path.read_text())
    return {key: {int(m): parse(row, f"tuned on {gpu}") for m, row in rows.items()} for key, rows in table.items()}


def parse(row: dict[str, object], source: str) -> MoeTiles:
    """A table's row back to a value. Raises: TypeError for unknown or missing fields."""
    plain = {key: value for key, value in row.items() if key not in ("gate_up", "down", "source")}
    return MoeTiles(gate_up=Tile(**row["gate_up"]), down=Tile(**row["down"]), source=source, **plain)  # type: ignore[arg-type]
