"""The operator `fused_moe`: checks, tiles, buffers, two launches (three with more than 32 tokens)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from r1_kernels import checks
from r1_kernels.counters import SIZE, counters
from r1_kernels.fused_moe import tiles as choice
from r1_kernels.fused_moe.kernel import (
    down_columns_kernel,
    down_sorted_kernel,
    gate_up_columns_kernel,
    gate_up_sorted_kernel,
)
from r1_kernels.launch import FUSE
from r1_kernels.quant.reference import FP8, GROUP
from r1_kernels.routing.op import sort_slots
from r1_kernels.routing.tiles import power_of_two


@dataclass(frozen=True)
class Experts:
    """The experts of one rank: w13 [E_local, 2I, H] (gate rows, then up rows) and w2 [E_local, H, I].

    BF16, or e4m3 with float32 scales of 128×128 blocks: [E_local, 2I/128, H/128] and [E_local, H/128, I/128].
    expert_map [E] int32: an expert's place here, −1 where it lives elsewhere; None: all live here.
    """

    w13_ENH: torch.Tensor
    w2_EHI: torch.Tensor
    w13_scale: torch.Tensor | None = None
    w2_scale: torch.Tensor | None = None
    expert_map: torch.Tensor | None = None

    @property
    def fp8(self) -> bool:
        """Whether the weights are block FP8."""
        return bool(self.w13_ENH.dtype == FP8)

    def check(self) -> None:
        """Raises: ValueError for a wrong type, block size, shape or layout."""
        checks.tensor("w13", self.w13_ENH, (torch.bfloat16, FP8), (None, None, None))
        experts, twice, hidden = self.w13_ENH.shape
        checks.multiple("w13's rows (gate and up)", twice, 2 * (GROUP if self.fp8 else 16))
        checks.multiple("hidden size", hidden, GROUP if self.fp8 else 16)
        width, like = twice // 2, self.w13_ENH
        checks.tensor("w2", self.w2_EHI, (like.dtype,), (experts, hidden, width), like=like)
        if self.fp8:
            if self.w13_scale is None or self.w2_scale is None:
                raise ValueError("w13_scale, w2_scale: FP8 weights need float32 scales of their 128×128 blocks")
            blocks = (experts, twice // GROUP, hidden // GROUP)
            checks.tensor("w13_scale", self.w13_scale, (torch.float32,), blocks, like=like)
            blocks = (experts, hidden // GROUP, width // GROUP)
            checks.tensor("w2_scale", self.w2_scale, (torch.float32,), blocks, like=like)
        elif self.w13_scale is not None or self.w2_scale is not None:
            raise ValueError(f"w13_scale, w2_scale: expected none with {self.w13_ENH.dtype} weights")
        if self.expert_map is not None:
            checks.tensor("expert_map", self.expert_map, (torch.int32,), (None,), like=like)

    def shape(self, tokens: int, topk: int) -> choice.Shape:
        """What the tile choice depends on."""
        local, twice, hidden = self.w13_ENH.shape
        everywhere = local if self.expert_map is None else self.expert_map.shape[0]
        return choice.Shape(tokens, topk, local, everywhere, hidden, twice // 2, self.fp8)


def fused_moe(
    x_MH: torch.Tensor,
    experts: Experts,
    weights_MT: torch.Tensor,
    ids_MT: torch.Tensor,
    *,
    x_scale: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    ue8m0: bool = False,
    tiles: choice.MoeTiles | None = None,
    check_ids: bool = True,
) -> torch.Tensor:
    """Sum over a token's experts that live here of weight · down(silu(gate x) · up x), bfloat16 [M, H].

    x: BF16, or e4m3 with x_scale [M, H/128] float32 (`quant.op.quantise`). weights [M, topk] float32 and global ids
    [M, topk] int32, those of a token different from each other. `ue8m0`: powers of two as scales between the GEMMs.
    `check_ids` reads the ids on the host, which waits for the GPU: a serving engine, whose router made them, and a
    graph capture turn it off. Deterministic: the same bits for the same call. Raises: ValueError before any launch.
    """
    experts.check()
    like = experts.w13_ENH
    local, _, hidden = like.shape
    checks.tensor("x", x_MH, (like.dtype,), (None, hidden), like=like)
    tokens = x_MH.shape[0]
    checks.tensor("ids", ids_MT, (torch.int32,), (tokens, None), like=like)
    topk = ids_MT.shape[1]
    checks.tensor("weights", weights_MT, (torch.float32,), (tokens, topk), like=like)
    if experts.fp8:
        if x_scale is None:
            raise ValueError(f"x_scale: an FP8 x needs float32 scales [{tokens}, {hidden // GROUP}]")
        checks.tensor("x_scale", x_scale, (torch.float32,), (tokens, hidden // GROUP), like=like)
    elif x_scale is not None:
        raise ValueError(f"x_scale: expected none with a {x_MH.dtype} x")
    if out is None:
        out = x_MH.new_empty((tokens, hidden), dtype=torch.bfloat16)
    checks.tensor("out", out, (torch.bfloat16,), (tokens, hidden), like=like)
    if tokens == 0 or topk == 0 or local == 0:
        return out.zero_()
    if check_ids:
        require_ids(ids_MT, local if experts.expert_map is None else experts.expert_map.shape[0])
    shape = experts.shape(tokens, topk)
    tiles = tiles or choice.choose(shape, gpu_of(x_MH.device))
    call = _Call(x_MH, x_scale, experts, weights_MT, ids_MT, out, ue8m0, shape)
    (_columns if tiles.regime == "few" else _sorted)(call, tiles)
    return out


def require_ids(ids_MT: torch.Tensor, experts: int) -> None:
    """Raises: ValueError where an id is outside [0, experts) or a token has the same twice."""
    if int(ids_MT.min()) < 0 or int(ids_MT.max()) >= experts:
        raise ValueError(f"ids: expected 0 to {experts - 1}, got {int(ids_MT.min())} to {int(ids_MT.max())}")
    ordered = ids_MT.sort(dim=-1).values
    if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        raise ValueError(f"ids: expected {ids_MT.shape[1]} different experts for each token, got one twice")


@cache
def gpu_of(device: torch.device) -> choice.Gpu:
    """Name and multiprocessors of a device; an H100's for a CPU, where only the interpreter runs."""
    if device.type != "cuda":
        return choice.H100
    properties = torch.cuda.get_device_properties(device)
    return choice.Gpu(properties.name, properties.multi_processor_count)


@dataclass(frozen=True)
class _Call:
    """One checked call."""

    x: torch.Tensor
    x_scale: torch.Tensor | None
    experts: Experts
    weights: torch.Tensor
    ids: torch.Tensor
    out: torch.Tensor
    ue8m0: bool
    shape: choice.Shape

    def hidden(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Room for the activation between the GEMMs, a row a slot, and its scales."""
        slots, width = self.ids.numel(), self.shape.width
        h = self.x.new_empty((slots, width))
        if not self.experts.fp8:
            return h, None
        return h, self.x.new_empty((slots, width // GROUP), dtype=torch.float32)

    def even(self, tile: choice.Tile, inner: int, outer: int) -> bool:
        """Whether blocks cut K (`inner`) and N (`outer`) without a rest, so that loads of weights need no mask."""
        return inner % tile.block_k == 0 and outer % tile.block_n == 0


def _columns(call: _Call, tiles: choice.MoeTiles) -> None:
    """Up to 32 tokens: a column a token; the first GEMM finds the active experts itself."""
    s, e, up, down = call.shape, call.experts, tiles.gate_up, tiles.down
    if not up.swap or up.block_m != down.block_m or up.block_m < s.tokens:
        raise ValueError(f"tiles: `few` needs swap and a column for each of {s.tokens} tokens in both, got {tiles}")
    slots = s.tokens * s.topk
    rows = min(s.local_experts, slots)
    across, strips = -(-s.width // up.block_n), -(-s.hidden // down.block_n)
    if max(rows * across, strips) > SIZE:
        raise ValueError(f"tiles: {rows * across} cells to count arrivals at, at most {SIZE}; use a wider block_n")
    h, h_scale = call.hidden()
    integers, floats = call.ids.new_empty, call.weights.new_empty
    active, inverse, counts = integers(rows), integers((rows, up.block_m)), integers(2)
    cell = up.block_n * up.block_m
    part = floats(rows * across * up.splits * 2 * cell) if up.splits > 1 else None
    gate_up_columns_kernel[(rows, across, up.splits)](
        call.x, call.x_scale, e.w13_ENH, e.w13_scale, call.ids, e.expert_map, h, h_scale, active, inverse, counts,
        part, counters(call.x.device), s.tokens, s.hidden, s.width,
        TOPK=s.topk, HAS_MAP=e.expert_map is not None, SLOTS=max(16, power_of_two(slots)),
        BINS=max(16, power_of_two(s.local_experts)), FP8=e.fp8, UE8M0=call.ue8m0,
        EVEN=call.even(up, s.hidden, s.width), BM=up.block_m, BN=up.block_n, BK=up.block_k, SPLITS=up.splits,
        num_warps=up.num_warps, num_stages=up.num_stages, **FUSE,
    )  # fmt: skip
    part = floats(strips * down.splits * down.block_n * down.block_m) if down.splits > 1 else None
    down_columns_kernel[(strips, down.splits)](
        h, h_scale, e.w2_EHI, e.w2_scale, call.weights, active, inverse, counts, call.out, part,
        counters(call.x.device), s.tokens, s.hidden, s.width,
        FP8=e.fp8, EVEN=call.even(down, s.width, s.hidden), BM=down.block_m, BN=down.block_n, BK=down.block_k,
        SPLITS=down.splits, num_warps=down.num_warps, num_stages=down.num_stages, **FUSE,
    )  # fmt: skip


def _sorted(call: _Call, tiles: choice.MoeTiles) -> None:
    """Any number of tokens: slots sorted by expert, persistent programs, sums by the last slot of each token."""
    s, e, up, down = call.shape, call.experts, tiles.gate_up, tiles.down
    if up.block_m != down.block_m:
        raise ValueError(f"tiles: both GEMMs walk the same row blocks; block_m {up.block_m} and {down.block_m} differ")
    table = sort_slots(call.ids, s.local_experts, up.block_m, expert_map=e.expert_map)
    most = tiles.programs_per_sm * gpu_of(call.x.device).multiprocessors
    bound = table.tiles.shape[0]
    across, strips = -(-s.width // up.block_n), -(-s.hidden // down.block_n)
    h, h_scale = call.hidden()
    gate_up_sorted_kernel[(min(most, bound * across),)](
        call.x, call.x_scale, e.w13_ENH, e.w13_scale, table.slots, table.tiles, table.counts, h, h_scale,
        s.hidden, s.width, TOPK=s.topk, FP8=e.fp8, UE8M0=call.ue8m0, EVEN=call.even(up, s.hidden, s.width),
        SWAP=up.swap, BM=up.block_m, BN=up.block_n, BK=up.block_k,
        num_warps=up.num_warps, num_stages=up.num_stages, **FUSE,
    )  # fmt: skip
    y = call.out.new_empty((s.tokens * s.topk, s.hidden))
    arrived = call.ids.new_zeros((s.tokens, strips))
    if e.expert_map is not None:
        call.out.zero_()  # nobody comes for a token none of whose experts live here
    down_sorted_kernel[(min(most, bound * strips),)](
        h, h_scale, e.w2_EHI, e.w2_scale, call.weights, call.ids, e.expert_map, table.slots, table.tiles, table.counts,
        y, call.out, arrived, s.tokens * s.topk, s.hidden, s.width,
        TOPK=s.topk, HAS_MAP=e.expert_map is not None, FP8=e.fp8, EVEN=call.even(down, s.width, s.hidden),
        SWAP=down.swap, BM=down.block_m, BN=down.block_n, BK=down.block_k,
        num_warps=down.num_warps, num_stages=down.num_stages, **FUSE,
    )  # fmt: skip
