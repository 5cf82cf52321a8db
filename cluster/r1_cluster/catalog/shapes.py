"""Exact parameters, bytes and FLOPs of a decoder from its config numbers.

One multiply-add is two FLOPs. "Linear" parameters are those a block-FP8 checkpoint quantises (every projection and
expert); "plain" ones keep ``plain_bytes`` (embeddings, heads, router, norms). Sources: the checkpoints' config.json
and transformers' ``modeling_deepseek_v3``, ``modeling_qwen2`` and ``modeling_llama``; MLA: arXiv 2405.04434 §2.1;
block scales: arXiv 2412.19437 §3.3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

WeightDtype = Literal["fp8_block", "bfloat16", "float32"]
KvDtype = Literal["fp8", "bfloat16", "float32"]

BYTES = {"fp8": 1, "fp8_block": 1, "bfloat16": 2, "float16": 2, "float32": 4}
BLOCK = 128  # a float32 scale for each 128 x 128 block of an FP8 weight


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention: one compressed KV vector of kv_lora_rank + qk_rope_head_dim a token, all heads."""

    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    @property
    def kv_values(self) -> int:
        """Values cached per token and layer (576 for R1), whatever the number of heads or tensor ranks."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def matrices(self, hidden: int, heads: int) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of q_a, q_b, kv_a, kv_b and o."""
        return (
            (self.q_lora_rank, hidden),
            (heads * self.qk_head_dim, self.q_lora_rank),
            (self.kv_values, hidden),
            (heads * (self.qk_nope_head_dim + self.v_head_dim), self.kv_lora_rank),
            (hidden, heads * self.v_head_dim),
        )

    def plain(self, hidden: int, heads: int) -> int:
        """The norms of the two compressed vectors."""
        return self.q_lora_rank + self.kv_lora_rank

    def score_flops(self, heads: int) -> int:
        """FLOPs of scores and weighted sum for one query token and one cached token of a prefill: not absorbed."""
        return 2 * heads * (self.qk_head_dim + self.v_head_dim)


@dataclass(frozen=True)
class GroupedAttention:
    """Grouped-query attention, as in Qwen2 and Llama."""

    kv_heads: int
    head_dim: int
    qkv_bias: bool = False

    @property
    def kv_values(self) -> int:
        """Values cached per token and layer: keys and values of every KV head."""
        return 2 * self.kv_heads * self.head_dim

    def matrices(self, hidden: int, heads: int) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of q, k, v and o."""
        kv = self.kv_heads * self.head_dim
        return ((heads * self.head_dim, hidden), (kv, hidden), (kv, hidden), (hidden, heads * self.head_dim))

    def plain(self, hidden: int, heads: int) -> int:
        """Biases of q, k and v, where there are any."""
        return (heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0

    def score_flops(self, heads: int) -> int:
        """FLOPs of scores and weighted sum for one query token and one cached token."""
        return 4 * heads * self.head_dim


@dataclass(frozen=True)
class Experts:
    """A mixture-of-experts block; every expert has gate, up and down projections."""

    routed: int
    shared: int
    top_k: int
    intermediate_size: int
    first_dense_layers: int


@dataclass(frozen=True)
class Architecture:
    """A decoder. Sizes are in parameters or bytes of the whole model, before any split over ranks."""

    name: str
    checkpoint: str
    hidden_size: int
    layers: int
    heads: int
    vocab_size: int
    intermediate_size: int
    max_position_embeddings: int
    attention: LatentAttention | GroupedAttention
    experts: Experts | None = None
    mtp_layers: int = 0
    tied_embeddings: bool = False
    weight_dtype: WeightDtype = "bfloat16"

    @property
    def moe_layers(self) -> int:
        return self.layers - self.experts.first_dense_layers if self.experts else 0

    @property
    def dense_layers(self) -> int:
        return self.layers - self.moe_layers

    @property
    def plain_bytes(self) -> int:
        """Bytes of one unquantised parameter."""
        return 4 if self.weight_dtype == "float32" else 2

    def linear_bytes(self, rows: int, columns: int, count: int = 1) -> int:
        """Bytes of ``count`` quantisable matrices, block scales included."""
        scales = 4 * ceil(rows / BLOCK) * ceil(columns / BLOCK) if self.weight_dtype == "fp8_block" else 0
        return count * (rows * columns * BYTES[self.weight_dtype] + scales)

    # One layer's parts, in bytes.

    @property
    def attention_bytes(self) -> int:
        """Attention of one layer, its two layer norms included."""
        linear = sum(self.linear_bytes(*shape) for shape in self.attention.matrices(self.hidden_size, self.heads))
        plain = self.attention.plain(self.hidden_size, self.heads) + 2 * self.hidden_size
        return linear + plain * self.plain_bytes

    def _mlp_bytes(self, intermediate: int) -> int:
        return self.linear_bytes(intermediate, self.hidden_size, 2) + self.linear_bytes(self.hidden_size, intermediate)

    @property
    def dense_mlp_bytes(self) -> int:
        return self._mlp_bytes(self.intermediate_size)

    @property
    def expert_bytes(self) -> int:
        """One routed expert (44 MB for R1 in block FP8); 0 for a dense model."""
        return self._mlp_bytes(self.experts.intermediate_size) if self.experts else 0

    @property
    def shared_expert_bytes(self) -> int:
        return self._mlp_bytes(self.experts.intermediate_size * self.experts.shared) if self.experts else 0

    @property
    def router_bytes(self) -> int:
        """The gate's matrix and its float32 correction bias."""
        return self.experts.routed * (self.hidden_size * self.plain_bytes + 4) if self.experts else 0

    @property
    def moe_bytes(self) -> int:
        """One whole mixture-of-experts block."""
        if self.experts is None:
            return 0
        return self.experts.routed * self.expert_bytes + self.shared_expert_bytes + self.router_bytes

    @property
    def embedding_bytes(self) -> int:
        return self.vocab_size * self.hidden_size * self.plain_bytes

    @property
    def lm_head_bytes(self) -> int:
        return 0 if self.tied_embeddings else self.embedding_bytes

    @property
    def mtp_bytes(self) -> int:
        """The multi-token-prediction layers as stored, each a MoE layer, eh_proj, three norms, embedding and head."""
        each = self.attention_bytes + self.moe_bytes + self.mtp_projection_bytes + 2 * self.embedding_bytes
        return self.mtp_layers * each

    @property
    def mtp_projection_bytes(self) -> int:
        """What an MTP layer has of its own: eh_proj and three norms, none quantised."""
        return (2 * self.hidden_size * self.hidden_size + 3 * self.hidden_size) * self.plain_bytes

    @property
    def weight_bytes(self) -> int:
        """All weights that serving without speculation loads (the MTP layers left out)."""
        blocks = self.layers * self.attention_bytes + self.dense_layers * self.dense_mlp_bytes
        norm = self.hidden_size * self.plain_bytes
        return blocks + self.moe_layers * self.moe_bytes + self.embedding_bytes + self.lm_head_bytes + norm

    @property
    def checkpoint_bytes(self) -> int:
        """All tensors of the published checkpoint."""
        return self.weight_bytes + self.mtp_bytes

    # Parameters.

    def _count(self, routed: int) -> int:
        attention = sum(rows * columns for rows, columns in self.attention.matrices(self.hidden_size, self.heads))
        attention += self.attention.plain(self.hidden_size, self.heads) + 2 * self.hidden_size
        total = self.layers * attention + self.dense_layers * 3 * self.hidden_size * self.intermediate_size
        if self.experts:
            expert = 3 * self.hidden_size * self.experts.intermediate_size
            total += self.moe_layers * (
                (routed + self.experts.shared) * expert + self.experts.routed * self.hidden_size
            )
        head = 0 if self.tied_embeddings else self.vocab_size * self.hidden_size
        return total + self.vocab_size * self.hidden_size + head + self.hidden_size

    @property
    def parameters(self) -> int:
        """Parameters without the MTP layers and the router's correction bias (a buffer)."""
        return self._count(self.experts.routed if self.experts else 0)

    @property
    def active_parameters(self) -> int:
        """Parameters one token passes through, embeddings included."""
        return self._count(self.experts.top_k if self.experts else 0)

    # KV cache.

    def kv_bytes_per_token(self, dtype: KvDtype = "bfloat16", *, tensor_parallel_size: int = 1) -> int:
        """KV bytes one token holds on one tensor rank, all layers."""
        return self.layers * self.kv_bytes_per_layer(dtype, tensor_parallel_size=tensor_parallel_size)

    def kv_bytes_per_layer(self, dtype: KvDtype = "bfloat16", *, tensor_parallel_size: int = 1) -> int:
        """Of one token on one tensor rank. MLA's cache is whole on every rank; GQA's heads are split until one KV head
        is left."""
        values = self.attention.kv_values
        if isinstance(self.attention, GroupedAttention):
            values //= min(tensor_parallel_size, self.attention.kv_heads)
        return values * BYTES[dtype]
