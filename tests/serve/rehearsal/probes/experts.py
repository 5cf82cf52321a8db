"""Compute a batch's experts on ranks that hold a share of them each, with vLLM's CPU experts as they come, then mapped.

Upstream is only tried with a map that swaps experts the rank does hold: an id it does not hold could crash the probe.
"""

import json

import torch
from r1_serve.rehearsal import experts, register
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FUSED_MOE_UNQUANTIZED_CONFIG
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts, cpu_prepack_moe_weight

T, K, E, H, N = 9, 4, 8, 64, 32
torch.manual_seed(0)
x_TH = torch.randn(T, H)
w13_E2NH, w2_EHN = torch.randn(E, 2 * N, H) / H**0.5, torch.randn(E, H, N) / N**0.5
ids_TK = torch.stack([torch.randperm(E)[:K] for _ in range(T)]).to(torch.int32)
weights_TK = torch.rand(T, K)


def reference(ids: torch.Tensor) -> torch.Tensor:
    """Each token's weighted experts, one at a time; negative ids contribute nothing."""
    out_TH = torch.zeros(T, H)
    for t in range(T):
        for k in range(K):
            if (e := int(ids[t, k])) >= 0:
                gate_N, up_N = (w13_E2NH[e] @ x_TH[t]).chunk(2)
                out_TH[t] += weights_TK[t, k] * (w2_EHN[e] @ (torch.nn.functional.silu(gate_N) * up_N))
    return out_TH


def rank(held: list[int], ids: torch.Tensor) -> torch.Tensor:
    """What a rank computes that holds the experts ``held``, in that order, for global ids."""
    kernel = object.__new__(CPUUnquantizedExperts)
    kernel.quant_config, kernel._use_zentorch = FUSED_MOE_UNQUANTIZED_CONFIG, False
    expert_map_E = torch.full((E,), -1, dtype=torch.int32)
    expert_map_E[held] = torch.arange(len(held), dtype=torch.int32)
    out_TH = torch.full((T, H), torch.nan)
    none = torch.empty(0)
    packed = [cpu_prepack_moe_weight(w[held].contiguous(), kernel.isa) for w in (w13_E2NH, w2_EHN)]
    kernel.apply(
        out_TH, x_TH, *packed, weights_TK.clone(), ids.clone(), MoEActivation.SILU, E, expert_map_E,
        None, None, none, none, None, False,
    )  # fmt: skip
    return out_TH


def error(got: torch.Tensor, right: torch.Tensor) -> float:
    return float(torch.nan_to_num(got - right, nan=1e9).abs().max())


everything = list(range(E))
swapped = [1, 0, *everything[2:]]
right = reference(ids_TK)
facts = {
    "needed": experts.needed(),
    "upstream_whole": error(rank(everything, ids_TK), right),
    "upstream_swapped": error(rank(swapped, ids_TK), right),
}
register()
facts |= {
    "needed_after": experts.needed(),
    "whole": error(rank(everything, ids_TK), right),
    "swapped": error(rank(swapped, ids_TK), right),
    "halves": error(rank([0, 1, 2, 3], ids_TK) + rank([4, 5, 6, 7], ids_TK), right),
    "odd_shares": error(sum(rank(held, ids_TK) for held in ([5], [7, 0, 2], [1, 3, 4, 6])), right),
    "none_of_mine": float(rank([0], torch.full_like(ids_TK, 3)).abs().max()),
}
print(json.dumps(facts))
