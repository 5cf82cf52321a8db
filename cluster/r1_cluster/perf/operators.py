"""Seconds of single operators on one rank: a roofline with a soft knee, and a fixed time.

t = fixed + ((flops / (peak x share))^3 + (bytes / (bandwidth x share))^3)^(1/3): the roofline of Williams et al. (2009)
with the knee rounded, as measured kernels have it. The shares are fitted; see docs/performance-model.md.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from r1_cluster.catalog import Experts, Gpu
from r1_cluster.perf.constants import Attention, Collectives, ExpertKernel, Gemm, KvDtype

KNEE = 3.0
KV_BYTES = {"fp8": 1, "bfloat16": 2, "float32": 4}


def roof(compute: float, memory: float) -> float:
    """The slower of two times, rounded where they meet. Seconds."""
    slow, fast = max(compute, memory), min(compute, memory)
    return slow * (1 + (fast / slow) ** KNEE) ** (1 / KNEE) if slow > 0 else 0.0


def gemm(gpu: Gpu, constants: Gemm, tokens: float, rows: float, columns: float, dtype: str) -> float:
    """``tokens`` x ``columns`` activations times a ``rows`` x ``columns`` weight. Seconds."""
    size = 1 if dtype == "fp8_block" else 2
    moved = rows * columns * size + tokens * columns * size + 2 * tokens * rows
    return constants.fixed + roof(
        2 * tokens * rows * columns / (gpu.rate(dtype) * constants.compute),
        moved / (gpu.bandwidth * constants.bandwidth),
    )


def latent_decode(
    gpu: Gpu, constants: Attention, cached: float, heads: float, kv_dtype: KvDtype, *, compute: float
) -> float:
    """Absorbed MLA over ``cached`` tokens in all (sequences x context), 576 values each. Seconds of one layer.

    Memory: each cached vector once. Compute: 2 x (576 + 512) FLOPs a head and token, at ``compute`` of BF16 peak.
    ``heads`` counts the kernel's padding and the queries of a sequence.
    """
    memory = cached * 576 * KV_BYTES[kv_dtype] / (gpu.bandwidth * constants.decode_bandwidth)
    return constants.fixed + roof(cached * heads * 2 * 1088 / (gpu.rate("bfloat16") * compute), memory)


@lru_cache(maxsize=64)
def _inclusion(experts: int, top_k: int, skew: float) -> NDArray[np.float64]:
    weights = np.arange(1, experts + 1, dtype=np.float64) ** -skew
    share: NDArray[np.float64] = np.minimum(1.0, top_k * weights / weights.sum())
    return share


@lru_cache(maxsize=1 << 16)
def distinct(experts: int, top_k: int, tokens: float, skew: float) -> float:
    """Expected experts touched by ``tokens`` tokens when expert i is chosen in proportion to i^-skew."""
    return float((1.0 - (1.0 - _inclusion(experts, top_k, skew)) ** tokens).sum())


def routed_experts(
    gpu: Gpu,
    constants: ExpertKernel,
    shape: Experts,
    hidden: int,
    expert_bytes: int,
    tokens: float,
    *,
    tensor: int,
    ranks: int,
    skew: float,
    hot: float,
    dtype: str,
) -> float:
    """Routed experts of one layer on the hottest of ``ranks`` expert ranks, each expert cut ``tensor`` ways. Seconds.

    ``tokens`` is the whole engine's. Memory: the weights of the experts touched, and activations in and out of every
    kernel. Compute: each expert's tokens padded by half a tile on average.
    """
    heat = float(ranks**hot)
    touched = min(distinct(shape.routed, shape.top_k, tokens, skew) * heat, shape.routed) / ranks
    pairs = tokens * shape.top_k / ranks * heat
    width = shape.intermediate_size / tensor
    memory = touched * expert_bytes / tensor / (gpu.bandwidth * constants.bandwidth)
    flops = (pairs + touched * constants.tile / 2) * 6 * hidden * width
    compute = flops / (gpu.rate(dtype) * constants.compute * float(tensor**-constants.shard))
    activations = pairs * (3 * hidden + 8 * width) / gpu.bandwidth
    return constants.fixed + roof(compute, memory) + activations


def all_reduce(gpu: Gpu, constants: Collectives, size: float, ranks: int) -> float:
    """Ring cost 2(n-1)/n x ``size`` bytes over NVLink, plus the network's part beyond a domain. Seconds."""
    if ranks == 1:
        return 0.0
    local = min(ranks, gpu.domain)
    time = constants.reduce_fixed + 2 * (local - 1) / local * size / (gpu.nvlink * constants.reduce_bandwidth)
    nodes = ranks / local
    if nodes > 1:  # hierarchical: each GPU carries its share between domains
        share = 2 * (nodes - 1) / nodes * size / local
        time += constants.network_fixed + share / (gpu.network * constants.network_bandwidth)
    return time


def exchange(
    gpu: Gpu, constants: Collectives, tokens: float, hidden: int, top_k: int, ranks: int, *, latency: bool
) -> float:
    """Dispatch in FP8 and combine in BF16 of one layer, ``tokens`` on each rank. Seconds.

    Decoding (``latency``): one copy an expert straight to its rank, NVLink and network side by side. Prefilling: one
    copy a rank in the domain and one a remote domain (DeepEP's two modes; arXiv 2412.19437 §3.2.2).
    """
    if ranks == 1:
        return 0.0
    local = min(ranks, gpu.domain)
    domains = ranks / local
    size = 3 * hidden * tokens
    if latency:
        near, far = top_k * (local - 1) / ranks, top_k * (domains - 1) / domains
        share = constants.latency_bandwidth
    else:
        near = local * (1 - (1 - 1 / ranks) ** (top_k * domains)) * (local - 1) / local
        far = domains * (1 - (1 - 1 / domains) ** top_k) * (domains - 1) / domains
        share = constants.exchange_bandwidth
    inside = near * size / (gpu.nvlink * share)
    if domains == 1:
        return 2 * constants.exchange_fixed + inside
    return 2 * constants.network_fixed + max(inside, far * size / (gpu.network * constants.network_bandwidth))
