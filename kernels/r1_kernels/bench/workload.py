"""What is timed: one rank's experts in R1's shape, routed by a power law, and the least time its bytes take."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from r1_kernels.aot.cases import LAYOUTS, R1_EXPERTS, R1_HIDDEN, R1_TOPK
from r1_kernels.cases import Case
from r1_kernels.fused_moe.op import Experts
from r1_kernels.quant.reference import quantise, quantise_blocks

ALPHA = 1.01
"""Exponent of the power law of the experts' popularity, as in the public measurements the issue of speed is held to."""


def route(tokens: int, generator: torch.Generator, alpha: float = ALPHA, experts: int = R1_EXPERTS) -> torch.Tensor:
    """Ids [tokens, 8] int32: 8 different experts a token, drawn with popularity rank^-alpha (Gumbel top-k)."""
    device = generator.device
    popularity = torch.arange(1, experts + 1, device=device, dtype=torch.float32).log() * -alpha
    popularity = popularity[torch.randperm(experts, generator=generator, device=device)]
    noise = torch.empty(tokens, experts, device=device).exponential_(generator=generator).log().neg()
    return (popularity + noise).topk(R1_TOPK, -1).indices.to(torch.int32).contiguous()


def experts_of(layout: str, device: torch.device, hidden: int = R1_HIDDEN) -> Experts:
    """Random block-FP8 experts of one rank (the first), expert by expert: the BF16 originals never lie side by side."""
    local, width = LAYOUTS[layout]
    generator = torch.Generator(device).manual_seed(0)

    def weight(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [
            quantise_blocks(torch.randn(rows, columns, generator=generator, device=device) / columns**0.5)
            for _ in range(local)
        ]
        return torch.stack([q for q, _ in parts]), torch.stack([s for _, s in parts])

    (w13, s13), (w2, s2) = weight(2 * width, hidden), weight(hidden, width)
    places = None
    if local < R1_EXPERTS:
        places = torch.full((R1_EXPERTS,), -1, dtype=torch.int32, device=device)
        places[:local] = torch.arange(local, dtype=torch.int32, device=device)
    return Experts(w13, w2, s13, s2, places)


@dataclass(frozen=True)
class Inputs:
    """One of the rotating inputs: BF16 tokens, as both sides get them, and the FP8 case made of them."""

    x: torch.Tensor
    case: Case


def inputs(experts: Experts, tokens: int, seed: int) -> Inputs:
    """Tokens, weights and ids."""
    device = experts.w13_ENH.device
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.randn(tokens, experts.w13_ENH.shape[2], generator=generator, device=device).bfloat16()
    weights = torch.rand(tokens, R1_TOPK, generator=generator, device=device) + 0.1
    q, scale = quantise(x)
    return Inputs(x, Case(q, scale, experts, weights, route(tokens, generator)))


def bytes_touched(case: Case) -> int:
    """The least traffic of one call: the chosen local experts' weights and scales once, tokens in, sums out."""
    e = case.experts
    local = case.ids.long() if e.expert_map is None else e.expert_map.long()[case.ids.long()]
    active = int(local[local >= 0].unique().numel())
    parts = [t for t in (e.w13_ENH, e.w2_EHI, e.w13_scale, e.w2_scale) if t is not None]
    per_expert = sum(t[0].numel() * t.element_size() for t in parts)
    tokens, hidden = case.x.shape
    return int(active * per_expert + tokens * hidden * (2 + 2))
