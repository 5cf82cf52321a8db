"""The expert map for CPU experts: each rank holds some experts and must skip the others.

With expert parallelism vLLM hands ``apply`` global expert ids and a map from them to the rank's own slots, -1 where
another rank owns the expert. The CPU experts take the map and never read it, so the kernel indexes past its weights:
the process crashes, or computes with the wrong expert.
"""

from __future__ import annotations

import dis
import inspect
from typing import Any

import torch


def needed() -> bool:
    """Whether ``apply`` has the parameter ``expert_map`` without any instruction that loads it."""
    function = _experts().apply
    if function.__module__ == __name__:
        return False
    if "expert_map" not in inspect.signature(function).parameters:
        raise AttributeError(f"{function.__qualname__} has no parameter expert_map")
    return not any(
        step.argval == "expert_map" and step.opname.startswith("LOAD_FAST") for step in dis.get_instructions(function)
    )


def apply() -> None:
    experts = _experts()
    upstream = experts.apply
    signature = inspect.signature(upstream)

    def mapped(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs).arguments
        expert_map = call["expert_map"]
        if expert_map is not None:
            call["topk_weights"], call["topk_ids"] = local_experts(call["topk_weights"], call["topk_ids"], expert_map)
            call["expert_map"] = None
        return upstream(**call)  # vLLM 0.29 returns the output, 0.32 writes it into an argument

    experts.apply = mapped


def local_experts(
    topk_weights_TK: torch.Tensor, topk_ids_TK: torch.Tensor, expert_map_E: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and ids of T tokens' K experts among this rank's own; an expert elsewhere becomes slot 0, weight 0."""
    local_TK = expert_map_E[topk_ids_TK.long()].to(topk_ids_TK.dtype)
    elsewhere_TK = local_TK < 0
    return topk_weights_TK.masked_fill(elsewhere_TK, 0.0), local_TK.masked_fill(elsewhere_TK, 0)


def _experts() -> Any:
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

    return CPUUnquantizedExperts
