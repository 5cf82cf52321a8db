"""Operands that tests and benchmarks share, and the bounds of the error they allow."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from r1_kernels.fused_moe.op import Experts, fused_moe
from r1_kernels.fused_moe.reference import fused_moe as reference
from r1_kernels.fused_moe.tiles import MoeTiles
from r1_kernels.quant.reference import quantise, quantise_blocks

# Never relaxed. Against the reference with the same FP8 operands, in units of the output's root mean square (of the
# tokens that have an expert at all): rounding the output to BF16 costs up to 2^-8 of its magnitude, sorted rows are
# rounded once more before they are added, and a value between the GEMMs may fall to the other side of an FP8 boundary
# where the order of a sum differs, which is the constant part.
MAX_ERROR = 1.5e-2
MAX_RELATIVE = 2**-7
RMS_ERROR = 3e-3


@dataclass(frozen=True)
class Case:
    """One call's operands."""

    x: torch.Tensor
    x_scale: torch.Tensor | None
    experts: Experts
    weights: torch.Tensor
    ids: torch.Tensor
    ue8m0: bool = False

    def run(self, tiles: MoeTiles | None = None) -> torch.Tensor:
        """The kernel, into an output poisoned with NaN."""
        out = self.x.new_full((self.x.shape[0], self.experts.w2_EHI.shape[1]), float("nan"), dtype=torch.bfloat16)
        return self.into(out, tiles)

    def into(self, out: torch.Tensor, tiles: MoeTiles | None = None, check_ids: bool = True) -> torch.Tensor:
        """The kernel, into `out`."""
        return fused_moe(
            self.x, self.experts, self.weights, self.ids,
            x_scale=self.x_scale, out=out, ue8m0=self.ue8m0, tiles=tiles, check_ids=check_ids,
        )  # fmt: skip

    def expected(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The reference, in `dtype`."""
        e = self.experts
        return reference(
            self.x, e.w13_ENH, e.w2_EHI, self.weights, self.ids, x_scale=self.x_scale, w13_scale=e.w13_scale,
            w2_scale=e.w2_scale, expert_map=e.expert_map, ue8m0=self.ue8m0, dtype=dtype,
        )  # fmt: skip

    def on_rank(self, rank: int, ranks: int) -> Case:
        """The same call on one of `ranks` expert-parallel ranks."""
        e = self.experts
        total = e.w13_ENH.shape[0]
        share = total // ranks
        mine = slice(rank * share, (rank + 1) * share)
        places = torch.full((total,), -1, dtype=torch.int32)
        places[mine] = torch.arange(share, dtype=torch.int32)
        scales = [None if s is None else s[mine].clone() for s in (e.w13_scale, e.w2_scale)]
        local = Experts(e.w13_ENH[mine].clone(), e.w2_EHI[mine].clone(), scales[0], scales[1], places)
        return replace(self, experts=local)


def distinct(tokens: int, experts: int, topk: int, generator: torch.Generator, skip: int = 0) -> torch.Tensor:
    """Different experts for each token; the first `skip` experts get none."""
    rows = [skip + torch.randperm(experts - skip, generator=generator)[:topk] for _ in range(tokens)]
    return torch.stack(rows).to(torch.int32) if rows else torch.empty(0, topk, dtype=torch.int32)


def make(
    tokens: int,
    *,
    fp8: bool,
    experts: int = 16,
    topk: int = 4,
    hidden: int = 256,
    width: int = 128,
    ids: torch.Tensor | None = None,
    ue8m0: bool = False,
) -> Case:
    """Random operands, the same for the same arguments."""
    g = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, hidden, generator=g).bfloat16()
    w13 = (torch.randn(experts, 2 * width, hidden, generator=g) / hidden**0.5).bfloat16()
    w2 = (torch.randn(experts, hidden, width, generator=g) / width**0.5).bfloat16()
    ids = distinct(tokens, experts, topk, g) if ids is None else ids
    weights = torch.rand(tokens, ids.shape[1], generator=g) + 0.1
    if not fp8:
        return Case(x, None, Experts(w13, w2), weights, ids)
    (q13, s13), (q2, s2) = quantise_blocks(w13), quantise_blocks(w2)
    qx, sx = quantise(x, ue8m0)
    return Case(qx, sx, Experts(q13, q2, s13, s2), weights, ids, ue8m0)


class DisagreesError(AssertionError):
    """A kernel's result is beyond the bounds."""


def agree(got: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """The errors in units of the output's RMS: the largest, less what rounding may cost; and the RMS.

    Tokens without an expert must be zero. Raises: DisagreesError beyond a bound; a NaN left from the poison is beyond.
    """
    busy = (expected != 0).any(-1)
    if not bool((got[~busy] == 0).all()):
        raise DisagreesError("tokens without an expert: expected zeros")
    if not bool(busy.any()):
        return 0.0, 0.0
    value = expected[busy].double()
    unit = value.square().mean().sqrt()
    off = (got[busy].double() - value).abs()
    excess = float(((off - MAX_RELATIVE * value.abs()) / unit).max())
    typical = float(off.square().mean().sqrt() / unit)
    if not (excess <= MAX_ERROR and typical <= RMS_ERROR):
        found = f"max error beyond rounding {excess:.2e}, RMS error {typical:.2e}, in units of the RMS output"
        raise DisagreesError(f"{found}; the bounds are {MAX_ERROR:.1e} and {RMS_ERROR:.1e}")
    return excess, typical
