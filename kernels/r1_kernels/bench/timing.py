"""Timing of short calls on a GPU: inside one CUDA graph, inputs rotating, L2 flushed before every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

FLUSH_BYTES = 256 << 20
"""Written before each call: five times an H100's L2."""


def microseconds(calls: Sequence[Callable[[], object]], rounds: int = 8, repeats: int = 7) -> float:
    """Median time of one call, µs. `calls` do the same on different inputs and are taken in turn.

    Captured: rounds × (flush, call) in one graph, and rounds × flush in another; the difference over rounds is a call
    without what launching from the host costs. Warm-up compiles and makes the operators' buffers.
    """
    buffer = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    for call in calls:
        call()
    torch.cuda.synchronize()

    def captured(work: bool) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for index in range(rounds):
                buffer.fill_(index)
                if work:
                    calls[index % len(calls)]()
        return graph

    full, empty = captured(True), captured(False)
    found = []
    for _ in range(repeats):
        pair = [_elapsed(graph) for graph in (full, empty)]
        found.append((pair[0] - pair[1]) / rounds)
    return sorted(found)[len(found) // 2] * 1e3


def _elapsed(graph: torch.cuda.CUDAGraph) -> float:
    """One replay, ms."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    graph.replay()  # clocks up
    torch.cuda.synchronize()
    start.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))


def bandwidth() -> float:
    """Bytes a second that reading 4 GiB takes (a sum, which writes nothing): the floor's denominator."""
    data = torch.empty(1 << 30, dtype=torch.float32, device="cuda").fill_(1.0)
    data.sum()
    torch.cuda.synchronize()
    times = []
    for _ in range(7):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        data.sum()
        end.record()
        torch.cuda.synchronize()
        times.append(float(start.elapsed_time(end)))
    return float(data.numel() * 4 / (sorted(times)[3] * 1e-3))
