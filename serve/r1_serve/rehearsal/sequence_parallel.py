"""A step of one token under tensor, data and expert parallelism together.

There vLLM leaves a layer's output spread over the tensor-parallel ranks, padded to a multiple of their number, and
tells a spread tensor from a whole one by its number of rows. Of a single token both have one row: the next layer takes
its share for the whole, all ranks but the first attend over the padding and cache its keys, and the answer goes astray
from the moment a request is served alone (vllm-project/vllm issue 50154, pull request 50691). Gathering a lone token at
the end of each layer makes the number of rows tell the truth.

The fault is the model's, not the platform's: this piece serves GPUs as well.
"""

from __future__ import annotations

import dis
import inspect
from typing import Any

import torch


def needed() -> bool:
    """Whether a layer compares numbers of rows to find out if its input is spread."""
    forward = _layer().forward
    if forward.__module__ == __name__:
        return False
    if "positions" not in inspect.signature(forward).parameters:
        raise AttributeError(f"{forward.__qualname__} has no parameter positions")
    guessed = "input_is_sequence_parallel" in forward.__code__.co_varnames[forward.__code__.co_argcount :]
    return guessed and any(
        step.opname == "COMPARE_OP" and step.argrepr.startswith("!=") for step in dis.get_instructions(forward)
    )


def apply() -> None:
    layer = _layer()
    layer.forward = gathering(layer.forward)


def gathering(upstream: Any) -> Any:
    """``upstream``, a layer's ``forward``, returning a lone token's hidden state and residual whole on every rank."""

    def forward(self: Any, positions: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        hidden_TH, residual_TH = upstream(self, positions, *args, **kwargs)
        if positions.shape[0] != 1 or not self.use_sequence_parallel_moe:
            return hidden_TH, residual_TH
        from vllm.distributed import tensor_model_parallel_all_gather

        both = tensor_model_parallel_all_gather(torch.cat([hidden_TH, residual_TH], dim=-1), 0)[:1]
        hidden_TH, residual_TH = both.split([hidden_TH.shape[-1], residual_TH.shape[-1]], dim=-1)
        return hidden_TH, residual_TH

    return forward


def _layer() -> Any:
    from vllm.model_executor.models.deepseek_v2 import DeepseekV2DecoderLayer

    return DeepseekV2DecoderLayer
