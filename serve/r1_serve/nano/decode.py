"""Batched decoding for the evaluation: quick on a CPU because the experts are computed densely."""

# torch is untyped to mypy here, so its base classes and decorators are Any.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import torch
from torch import Tensor

from r1_serve.nano.model import KVCache, NanoForTraining


def pick(logits_BV: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    """One token a row, [B]: the best at temperature 0, else drawn from the smallest set with mass `top_p`."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    probabilities, order = (logits_BV / temperature).softmax(-1).sort(dim=-1, descending=True)
    before = probabilities.cumsum(-1) - probabilities
    kept = probabilities.masked_fill(before >= top_p, 0.0)
    return order.gather(-1, torch.multinomial(kept, 1, generator=generator)).squeeze(-1)


@torch.inference_mode()
def generate(
    model: NanoForTraining,
    prompts: list[list[int]],
    *,
    eos: int,
    max_new: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[list[int]]:
    """Each prompt's continuation, up to and including `eos` where it came within `max_new` tokens."""
    generator = torch.Generator().manual_seed(seed)
    width = max(map(len, prompts))
    tokens = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    pad = torch.tensor([width - len(p) for p in prompts])
    caches = [KVCache(len(prompts), width + max_new, model.s) for _ in range(model.s.num_hidden_layers)]
    live = torch.arange(len(prompts))
    written: list[list[int]] = [[] for _ in prompts]
    for _ in range(max_new):
        step = pick(model.extend(tokens, caches, pad), temperature, top_p, generator)
        for row, token in zip(live.tolist(), step.tolist(), strict=True):
            if not written[row] or written[row][-1] != eos:
                written[row].append(token)
        going = step != eos
        if not going.any():
            break
        if not going.all():
            rows = going.nonzero().squeeze(-1)
            live, pad, step = live[rows], pad[rows], step[rows]
            for cache in caches:
                cache.keep(rows)
        tokens = step.unsqueeze(-1)
    return written
