"""Plain torch: DeepSeek-V3's grouped sigmoid routing, and a stable sort of the slots by expert."""

from __future__ import annotations

import torch


def route(
    logits_ME: torch.Tensor, bias_E: torch.Tensor, groups: int, top_groups: int, topk: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose `topk` experts of each token; weights [M, topk] float32, ids [M, topk] int32.

    Source: DeepSeek-V3 report, section 2.1.2, and the checkpoint's own modelling code. A group's score is the sum of
    its two highest biased scores; the bias chooses and does not weigh. Of equal scores the lower index is first
    (a stable sort), among groups and among experts.
    """
    tokens, experts = logits_ME.shape
    scores_ME = logits_ME.float().sigmoid()
    biased_ME = scores_ME + bias_E.float()
    grouped = biased_ME.view(tokens, groups, experts // groups)
    group_scores = grouped.sort(dim=-1, descending=True, stable=True).values[..., :2].sum(-1)
    best = group_scores.sort(dim=-1, descending=True, stable=True).indices[:, :top_groups]
    kept = torch.zeros_like(group_scores, dtype=torch.bool).scatter_(1, best, True)
    masked = grouped.masked_fill(~kept[..., None], float("-inf")).view(tokens, experts)
    ids = masked.sort(dim=-1, descending=True, stable=True).indices[:, :topk]
    weights = scores_ME.gather(1, ids)
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * scale
    return weights, ids.to(torch.int32)


def sort_slots(
    ids_MT: torch.Tensor, local_experts: int, expert_map: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots (token · topk + choice) in order of their local expert: offsets [E_local + 1] and slots, both int32.

    Slots of experts that live elsewhere (−1 in `expert_map`) are left out; within an expert slots ascend.
    """
    ids = ids_MT.reshape(-1).long()
    local = expert_map.long()[ids] if expert_map is not None else ids
    counts = torch.bincount(local[local >= 0], minlength=local_experts)
    offsets = torch.zeros(local_experts + 1, dtype=torch.int32, device=ids_MT.device)
    offsets[1:] = counts.cumsum(0)
    order = local.masked_fill(local < 0, local_experts).sort(stable=True, dim=0).indices
    return offsets, order[: int(offsets[-1])].to(torch.int32)
