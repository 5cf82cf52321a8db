"""Arrival counters: int32 zeros that kernels count up and set back to zero before they end."""

from __future__ import annotations

import torch

SIZE = 1 << 16
_made: dict[torch.device, torch.Tensor] = {}


def counters(device: torch.device) -> torch.Tensor:
    """The counters of `device`, [SIZE] int32: zero between kernels, so that no launch has to clear them.

    One buffer a device: two kernels that use it must not overlap, so call the operators from one stream at a time.
    Raises: RuntimeError where it would be made during a graph capture, which does not run what clears it.
    """
    if device not in _made:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "call the operator once, or r1_kernels.counters.counters(device), before capturing a graph"
            )
        _made[device] = torch.zeros(SIZE, dtype=torch.int32, device=device)
    return _made[device]
