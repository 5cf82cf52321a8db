"""Muon: momentum whose matrices are orthogonalised by Newton–Schulz, batched over stacked experts.

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024). torch.optim.Muon takes only
two-dimensional parameters; here an [E, M, D] parameter is E matrices.
"""

# torch is untyped to mypy here, so its base classes and decorators are Any.
# mypy: disable-error-code="misc, untyped-decorator"

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def quick_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are quicker than in float32: CPUs without AVX-512 take many times as long."""
    return device.type != "cpu" or "AVX512" in torch.backends.cpu.get_cpu_capability()


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix to each [..., n, m] of g, roughly, in bfloat16 where that is quick."""
    a, b, c = _COEFFICIENTS
    x = g.bfloat16() if quick_bfloat16(g.device) else g
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, scaled by sqrt(max(1, rows / columns)); decoupled weight decay.

    A group's `blocks` splits the rows of its matrices: an attention projection is one matrix a head, and far cheaper
    to orthogonalise that way.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "blocks": 1})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            for p in group["params"]:
                state: dict[str, Any] = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                buffer = state["momentum"]
                buffer.lerp_(p.grad, 1 - group["momentum"])
                direction = p.grad.lerp(buffer, group["momentum"])
                blocks = direction.unflatten(-2, (group["blocks"], -1))
                update = orthogonalise(blocks).view_as(p)
                scale = max(1.0, blocks.shape[-2] / blocks.shape[-1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.to(p.dtype), alpha=-group["lr"] * scale)
