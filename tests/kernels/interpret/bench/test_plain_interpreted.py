"""bench/plain: the comparison computes the same sum, or its time would mean nothing."""

from __future__ import annotations

import pytest
import torch
from r1_kernels.bench.plain.op import plain_moe
from r1_kernels.cases import Case, make


@pytest.mark.parametrize("tokens", [3, 33])
@pytest.mark.parametrize("rank", [None, 1])
def test_the_plain_passes_give_the_references_sum(tokens: int, rank: int | None) -> None:
    case: Case = make(tokens, fp8=True)
    x = make(tokens, fp8=False).x
    case = case if rank is None else case.on_rank(rank, 4)
    got, right = plain_moe(x, case.experts, case.weights, case.ids).double(), case.expected().double()
    # vLLM's algorithm rounds gate and up to BF16, and with them the FP8 values after SwiGLU.
    off = (got - right).square().mean().sqrt() / right.square().mean().sqrt()
    assert off < 2e-2
    assert bool(torch.isfinite(got).all())
