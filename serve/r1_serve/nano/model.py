"""The training-time r1-nano: DeepSeek-V3's forward with every small expert computed densely.

transformers loops over the experts, which on a CPU costs far more than the arithmetic saved. Here all experts of a
layer are one SwiGLU whose hidden units are scaled by their expert's gate (zero where it was not chosen), so a layer is
two matrix products. Same mathematics, same parameters: `export.py` splits them into the checkpoint's own names.

Shapes: B sequences, T tokens, D hidden, H heads, E routed experts, M hidden units of an expert, C the KV rank,
R rope dims, N nope dims, V value dims.
"""

# torch is untyped to mypy here, so its base classes and decorators are Any.
# mypy: disable-error-code="misc, untyped-decorator"

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1_serve.nano.shape import NANO, NanoShape


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)


def rope_table(length: int, dims: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin, [length, dims/2]."""
    inverse = theta ** (-torch.arange(0, dims, 2).float() / dims)
    angles = torch.outer(torch.arange(length).float(), inverse)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of interleaved pairs; x [..., T, R], cos and sin [T, R/2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    # Written halves-first: the order inside a head does not matter, as queries and keys are permuted alike.
    return torch.cat((even * cos - odd * sin, odd * cos + even * sin), dim=-1).to(x.dtype)


class KVCache:
    """Expanded keys [B, H, S, N+R] and values [B, H, S, V] of one layer, `used` columns of them filled."""

    def __init__(self, batch: int, length: int, s: NanoShape) -> None:
        H = s.num_attention_heads
        self.k = torch.zeros(batch, H, length, s.qk_nope_head_dim + s.qk_rope_head_dim)
        self.v = torch.zeros(batch, H, length, s.v_head_dim)
        self.used = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        end = self.used + k.shape[2]
        self.k[:, :, self.used : end] = k
        self.v[:, :, self.used : end] = v
        self.used = end
        return self.k[:, :, :end], self.v[:, :, :end]

    def keep(self, rows: Tensor) -> None:
        self.k, self.v = self.k[rows], self.v[rows]


class Attention(nn.Module):
    """Multi-head latent attention, keys and values expanded (not absorbed)."""

    def __init__(self, s: NanoShape) -> None:
        super().__init__()
        self.s = s
        head = s.qk_nope_head_dim + s.qk_rope_head_dim
        self.q_a_proj = nn.Linear(s.hidden_size, s.q_lora_rank, bias=False)
        self.q_a_layernorm = RMSNorm(s.q_lora_rank, s.rms_norm_eps)
        self.q_b_proj = nn.Linear(s.q_lora_rank, s.num_attention_heads * head, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(s.hidden_size, s.kv_lora_rank + s.qk_rope_head_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(s.kv_lora_rank, s.rms_norm_eps)
        expanded = s.num_attention_heads * (s.qk_nope_head_dim + s.v_head_dim)
        self.kv_b_proj = nn.Linear(s.kv_lora_rank, expanded, bias=False)
        self.o_proj = nn.Linear(s.num_attention_heads * s.v_head_dim, s.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: KVCache | None) -> Tensor:
        """mask is added to the scores: [T, T], or [B, 1, T, S] with a cache of S columns."""
        s = self.s
        B, T, _ = x_BTD.shape
        H, N, R, V = s.num_attention_heads, s.qk_nope_head_dim, s.qk_rope_head_dim, s.v_head_dim
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD))).view(B, T, H, N + R).transpose(1, 2)
        q_nope, q_rope = q.split((N, R), dim=-1)
        latent, k_rope = self.kv_a_proj_with_mqa(x_BTD).split((s.kv_lora_rank, R), dim=-1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(B, T, H, N + V).transpose(1, 2)
        k_nope, v = kv.split((N, V), dim=-1)
        q = torch.cat((q_nope, rotate(q_rope, cos, sin)), dim=-1)
        k = torch.cat((k_nope, rotate(k_rope, cos, sin).unsqueeze(1).expand(B, H, T, R)), dim=-1)
        if cache is not None:
            k, v = cache.append(k, v)
        scores = (q @ k.transpose(-1, -2)) * (1.0 / math.sqrt(N + R)) + mask
        out = F.softmax(scores.float(), dim=-1).to(v.dtype) @ v
        return cast(Tensor, self.o_proj(out.transpose(1, 2).reshape(B, T, H * V)))


class MLP(nn.Module):
    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size, hidden, bias=False)
        self.up_proj = nn.Linear(size, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))


class DenseMoE(nn.Module):
    """Grouped sigmoid routing over E experts, all of them computed, and the shared expert.

    `e_score_correction_bias` steers only the choice of experts, never their weights; `load` [E] counts how often each
    was chosen since the last `balance`.
    """

    e_score_correction_bias: Tensor
    load: Tensor

    def __init__(self, s: NanoShape) -> None:
        super().__init__()
        self.s = s
        E, M, D = s.n_routed_experts, s.moe_intermediate_size, s.hidden_size
        self.router = nn.Parameter(torch.empty(E, D))
        self.gate_EMD = nn.Parameter(torch.empty(E, M, D))
        self.up_EMD = nn.Parameter(torch.empty(E, M, D))
        self.down_EDM = nn.Parameter(torch.empty(E, D, M))
        self.shared = MLP(D, M * s.n_shared_experts)
        self.register_buffer("e_score_correction_bias", torch.zeros(E))
        self.register_buffer("load", torch.zeros(E), persistent=False)

    def route(self, x_TD: Tensor) -> Tensor:
        """Gates [T, E]: zero for experts not chosen, else normalised scores times the scaling factor."""
        s = self.s
        scores = (x_TD.float() @ self.router.float().t()).sigmoid()
        with torch.no_grad():
            choice = scores + self.e_score_correction_bias
            groups = choice.view(-1, s.n_group, s.n_routed_experts // s.n_group)
            best = groups.topk(2, dim=-1).values.sum(-1).topk(s.topk_group, dim=-1).indices
            open_groups = torch.zeros_like(groups[..., 0]).scatter_(1, best, 1.0)
            closed = (open_groups == 0).unsqueeze(-1).expand_as(groups).reshape_as(choice)
            chosen = choice.masked_fill(closed, float("-inf")).topk(s.num_experts_per_tok, dim=-1).indices
            mask = torch.zeros_like(choice).scatter_(1, chosen, 1.0)
            if self.training:
                self.load += mask.sum(0)
        gates = scores * mask
        return gates / (gates.sum(-1, keepdim=True) + 1e-20) * s.routed_scaling_factor

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_TD = x_BTD.reshape(-1, x_BTD.shape[-1])
        gates_TE = self.route(x_TD).to(x_TD.dtype)
        hidden = F.silu(F.linear(x_TD, self.gate_EMD.flatten(0, 1))) * F.linear(x_TD, self.up_EMD.flatten(0, 1))
        E, M = self.s.n_routed_experts, self.s.moe_intermediate_size
        hidden = (hidden.view(-1, E, M) * gates_TE.unsqueeze(-1)).flatten(1)
        out = F.linear(hidden, self.down_EDM.transpose(0, 1).reshape(-1, E * M))
        return (out + self.shared(x_TD)).view_as(x_BTD)

    @torch.no_grad()
    def balance(self, gamma: float) -> None:
        """The auxiliary-loss-free update of the DeepSeek-V3 report: overloaded experts are chosen less, others more."""
        self.e_score_correction_bias += gamma * torch.sign(self.load.mean() - self.load)
        self.load.zero_()


class Block(nn.Module):
    def __init__(self, s: NanoShape, dense: bool) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(s.hidden_size, s.rms_norm_eps)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = RMSNorm(s.hidden_size, s.rms_norm_eps)
        self.mlp: MLP | DenseMoE = MLP(s.hidden_size, s.intermediate_size) if dense else DenseMoE(s)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: KVCache | None = None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        return cast(Tensor, x + self.mlp(self.post_attention_layernorm(x)))


def initialise(module: nn.Module) -> None:
    """Matrices as they are before training; norms are left as they are made."""
    for name, p in module.named_parameters():
        if p.dim() >= 2:
            nn.init.normal_(p, std=0.5 if "embed" in name else p.shape[-1] ** -0.5)
            if name.endswith(("o_proj.weight", "down_proj.weight", "down_EDM", "lm_head.weight")):
                p.data.mul_(0.3)


class NanoForTraining(nn.Module):
    """tokens [B, T] -> logits [B, T, vocabulary], causal, positions from 0; pad on the right."""

    cos: Tensor
    sin: Tensor

    def __init__(self, s: NanoShape = NANO) -> None:
        super().__init__()
        self.s = s
        self.embed_tokens = nn.Embedding(s.vocab_size, s.hidden_size)
        self.layers = nn.ModuleList(Block(s, i < s.first_k_dense_replace) for i in range(s.num_hidden_layers))
        self.norm = RMSNorm(s.hidden_size, s.rms_norm_eps)
        self.lm_head = nn.Linear(s.hidden_size, s.vocab_size, bias=False)
        cos, sin = rope_table(s.max_position_embeddings, s.qk_rope_head_dim, s.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        initialise(self)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return cast(Tensor, self.lm_head(self.hidden(tokens_BT)))

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """After the last norm, [B, T, D]."""
        T = tokens_BT.shape[1]
        x = self.embed_tokens(tokens_BT)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.bfloat16)
        mask = torch.full((T, T), float("-inf"), device=x.device, dtype=x.dtype).triu(1)
        cos, sin = self.cos[:T].to(x.dtype), self.sin[:T].to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return cast(Tensor, self.norm(x))

    def extend(self, tokens_BT: Tensor, caches: list[KVCache], pad_B: Tensor) -> Tensor:
        """Logits [B, vocabulary] after the last of `tokens`, which follow what is cached.

        Rows are padded on the left by pad_B columns. A column's index is its position: rotary scores depend on
        differences of positions only, so the padding shifts nothing.
        """
        T, past = tokens_BT.shape[1], caches[0].used
        rows = torch.arange(past, past + T).view(1, 1, T, 1)
        columns = torch.arange(past + T).view(1, 1, 1, -1)
        seen = (columns <= rows) & ((columns >= pad_B.view(-1, 1, 1, 1)) | (columns == rows))
        mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
        x = self.embed_tokens(tokens_BT)
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, self.cos[past : past + T], self.sin[past : past + T], mask, cache)
        return cast(Tensor, self.lm_head(self.norm(x[:, -1])))
