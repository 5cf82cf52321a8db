"""Arrival counters: int32 zeros that kernels count up and set back to zero before they end."""

from __future__ import annotations

import torch

SIZE = 1 << 16
_made: dict[tuple[torch.device, int], torch.Tensor] = {}


def counters(device: torch.device) -> torch.Tensor:
    """The counters of the current stream on `device`, [SIZE] int32: zero between kernels, so no launch clears them.

    One buffer a stream: kernels of one stream do not overlap. Made on first use, so warm up before capturing a graph.
    """
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    key = (device, stream)
    if key not in _made:
        _made[key] = torch.zeros(SIZE, dtype=torch.int32, device=device)
    return _made[key]
