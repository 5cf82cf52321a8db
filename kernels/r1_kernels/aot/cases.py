"""The calls whose kernels are compiled ahead of time: R1's shapes on the layouts it is served on, and r1-nano's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from r1_kernels.fused_moe.op import Experts, fused_moe
from r1_kernels.quant.op import quantise, swiglu_quantise
from r1_kernels.quant.reference import FP8
from r1_kernels.routing.op import route

R1_EXPERTS, R1_TOPK, R1_HIDDEN = 256, 8, 7168
LAYOUTS = {"TP8": (256, 256), "EP8": (32, 2048), "EP16": (16, 2048), "EP32": (8, 2048)}
"""R1's layouts: experts on a rank, and their width there."""
TOKENS = (1, 8, 16, 32, 64, 256, 1024, 4096)


def meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """A tensor without data."""
    return torch.empty(shape, dtype=dtype, device="meta")


def experts(local: int, everywhere: int, hidden: int, width: int, fp8: bool) -> Experts:
    """Weights without data."""
    kind = FP8 if fp8 else torch.bfloat16
    places = None if local == everywhere else meta(everywhere, dtype=torch.int32)
    w13, w2 = meta(local, 2 * width, hidden, dtype=kind), meta(local, hidden, width, dtype=kind)
    if not fp8:
        return Experts(w13, w2, expert_map=places)
    s13 = meta(local, 2 * width // 128, hidden // 128, dtype=torch.float32)
    s2 = meta(local, hidden // 128, width // 128, dtype=torch.float32)
    return Experts(w13, w2, s13, s2, places)


def moe(tokens: int, topk: int, these: Experts) -> object:
    """One call of fused_moe."""
    hidden = these.w13_ENH.shape[2]
    x = meta(tokens, hidden, dtype=these.w13_ENH.dtype)
    scale = meta(tokens, hidden // 128, dtype=torch.float32) if these.fp8 else None
    weights, ids = meta(tokens, topk, dtype=torch.float32), meta(tokens, topk, dtype=torch.int32)
    return fused_moe(x, these, weights, ids, x_scale=scale, check_ids=False)


def routing(tokens: int, all_experts: int) -> object:
    """One call of route."""
    logits, bias = meta(tokens, all_experts, dtype=torch.float32), meta(all_experts, dtype=torch.float32)
    return route(logits, bias, groups=8, top_groups=4, topk=8, scale=2.5)


def calls() -> list[Callable[[], object]]:
    """Every call, cheap ones first."""
    found: list[Callable[[], object]] = [partial(routing, m, R1_EXPERTS) for m in (1, 64, 256)]
    for rows in (1, 4096):
        x = meta(rows, R1_HIDDEN, dtype=torch.bfloat16)
        found += [partial(quantise, x), partial(quantise, x, ue8m0=True), partial(swiglu_quantise, x[:, :4096].clone())]
    for local, width in LAYOUTS.values():
        these = experts(local, R1_EXPERTS, R1_HIDDEN, width, True)
        found += [partial(moe, tokens, R1_TOPK, these) for tokens in TOKENS]
    nano = experts(32, 32, 192, 64, False)
    return found + [partial(moe, tokens, 8, nano) for tokens in (1, 64, 1024)]
