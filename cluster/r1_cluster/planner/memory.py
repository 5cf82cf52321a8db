"""Where one GPU's memory goes, part by part, so that a person can add it up.

Weights are counted exactly (``r1_cluster.catalog``); the workspace is an estimate with its formula below; the reserve
is 1 - gpu_memory_utilization, as vLLM leaves it; the rest is KV cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from r1_cluster.catalog import LatentAttention
from r1_cluster.perf.step import Engine

UTILIZATION = 0.9  # vLLM's default gpu_memory_utilization
LIBRARIES = int(4e9)  # an allowance, not measured: CUDA context, NCCL channels, cuBLAS, CUDA graph pools
BLOCK = 64  # tokens of a KV block; FlashMLA needs 64


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU. ``kv_cache`` is 0 or more; ``short`` is what is missing where weights and workspace overflow.

    ``kv_tokens``: of one data-parallel rank, whole blocks.
    """

    weights: int
    workspace: int
    kv_cache: int
    reserve: int
    short: int
    kv_tokens: int

    @property
    def usable(self) -> int:
        return self.weights + self.workspace + self.kv_cache - self.short


def memory(engine: Engine, *, batched_tokens: int, max_num_seqs: int, utilization: float = UTILIZATION) -> Memory:
    """The fullest GPU of ``engine``, with steps of up to ``batched_tokens`` tokens and ``max_num_seqs`` sequences."""
    usable = engine.gpu.usable_bytes(utilization)
    weights = engine.weight_bytes()
    work = workspace(engine, batched_tokens=batched_tokens, max_num_seqs=max_num_seqs)
    free = usable - weights - work
    kv = max(0, free)
    tokens = kv // engine.kv_bytes_per_token() // BLOCK * BLOCK
    return Memory(weights, work, kv, engine.gpu.memory_bytes - usable, max(0, -free), tokens)


def workspace(engine: Engine, *, batched_tokens: int, max_num_seqs: int) -> int:
    """Bytes beside weights and KV: libraries, absorbed kv_b matrices, and the activations of the largest step.

    absorbed: vLLM keeps both halves of kv_b in BF16 beside the checkpoint's own, heads/t x 512 x (128 + 128) x 2 a
    layer. activations: T x (4 x hidden + heads/t x (2 x qk + v)) x 2 in attention; T x top_k pairs through the experts,
    hidden in FP8 and out in BF16, 3 x width x 2 between; float32 logits and probabilities of ``max_num_seqs`` rows, and
    as many for each draft. The layer that drafts has an absorbed kv_b, too.
    """
    model, split = engine.model, engine.split
    shape, heads = model.attention, model.heads / split.tensor
    absorbed = 0.0
    if isinstance(shape, LatentAttention):
        absorbed = heads * shape.kv_lora_rank * (shape.qk_nope_head_dim + shape.v_head_dim) * 2
        attended = heads * (2 * shape.qk_head_dim + shape.v_head_dim)
    else:
        attended = (heads + 2 * ceil(shape.kv_heads / split.tensor)) * shape.head_dim
    activations = batched_tokens * (4 * model.hidden_size + attended) * 2
    if model.experts:
        width = model.experts.intermediate_size / split.expert_tensor
        activations += batched_tokens * model.experts.top_k * (3 * model.hidden_size + 6 * width)
    else:
        activations += batched_tokens * 3 * model.intermediate_size / split.tensor * 2
    logits = max_num_seqs * engine.width * model.vocab_size / split.tensor * 8
    return int(LIBRARIES + absorbed * engine.most_layers + activations + logits)


def overflow(engine: Engine, found: Memory) -> str:
    """Why ``found`` does not fit, with the numbers to check it by. GB are 10^9 bytes."""
    gpus, drafts = engine.split.gpus, " with the layer that drafts" if engine.speculation else ""
    return (
        f"{engine.split}{drafts} on {gpus}x{engine.gpu.name}: {gigabytes(found.weights * gpus)} of weights + "
        f"{gigabytes(found.workspace * gpus)} of workspace > {gpus} x {gigabytes(found.usable)} usable"
    )


def gigabytes(size: float) -> str:
    """In 10^9 bytes, three digits."""
    value = size / 1e9
    return f"{value:,.0f} GB" if value >= 100 else f"{value:.1f} GB"
