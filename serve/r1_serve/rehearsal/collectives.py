"""``all_gatherv`` and ``reduce_scatterv`` for CPU groups: data-parallel attention before expert parallelism.

vLLM's expert dispatch gathers every rank's tokens before the experts and scatters the summed outputs after them, with
a different number of tokens on each rank. Its CPU communicator leaves both to a base class that raises.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist


def needed() -> bool:
    """Whether the CPU communicator still inherits the base class's refusals."""
    from vllm.distributed.device_communicators.base_device_communicator import DeviceCommunicatorBase
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    return any(
        getattr(CpuCommunicator, name) is getattr(DeviceCommunicatorBase, name)
        for name in ("all_gatherv", "reduce_scatterv")
    )


def apply() -> None:
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    CpuCommunicator.all_gatherv = all_gatherv
    CpuCommunicator.reduce_scatterv = reduce_scatterv


def all_gatherv(
    self: Any, input_: torch.Tensor | list[torch.Tensor], dim: int = 0, sizes: list[int] | None = None
) -> torch.Tensor | list[torch.Tensor]:
    """Concatenate every rank's rows in rank order; rank r gives ``sizes[r]`` rows, or all as many as this one.

    A list of tensors (hidden states, weights and ids of the same tokens) travels as one message: on loopback a
    collective's cost is its round trip, not its bytes.
    """
    if dim != 0:
        raise ValueError(f"rows are gathered along dimension 0, not {dim}")
    tensors = input_ if isinstance(input_, list) else [input_]
    rows = tensors[0].shape[0]
    sizes = sizes or [rows] * self.world_size
    parts = [_as_bytes(tensor) for tensor in tensors]
    widths = [part.shape[1] for part in parts]

    # Rows that differ in number go through all-to-all: gloo's all-gather wants equal shares, and is no faster here.
    share = torch.cat(parts, dim=1)
    gathered = share.new_empty(sum(sizes), share.shape[1])
    dist.all_to_all_single(
        gathered,
        share.repeat(self.world_size, 1),
        output_split_sizes=sizes,
        input_split_sizes=[rows] * self.world_size,
        group=self.device_group,
    )

    ends = list(accumulate(widths))
    outputs = [
        # A copy even of a single row: its bytes must start where the type may start.
        gathered[:, end - width : end]
        .clone(memory_format=torch.contiguous_format)
        .flatten()
        .view(tensor.dtype)
        .view(sum(sizes), *tensor.shape[1:])
        for tensor, width, end in zip(tensors, widths, ends, strict=True)
    ]
    return outputs if isinstance(input_, list) else outputs[0]


def reduce_scatterv(self: Any, input_: torch.Tensor, dim: int = -1, sizes: list[int] | None = None) -> torch.Tensor:
    """Sum the ranks' tensors and keep this rank's rows: ``sizes[r]`` of them belong to rank r.

    Every row is summed in rank order, wherever it lies in the batch: a ring's order depends on a row's position, and
    greedy tokens would depend on who else is being served.
    """
    if dim not in (0, -input_.dim()):
        raise ValueError(f"rows are scattered along dimension 0, not {dim}")
    sizes = sizes or [input_.shape[0] // self.world_size] * self.world_size
    mine = sizes[self.rank_in_group]
    shares = input_.new_empty(self.world_size, mine, *input_.shape[1:])
    dist.all_to_all_single(
        shares.flatten(0, 1),
        input_.contiguous(),
        output_split_sizes=[mine] * self.world_size,
        input_split_sizes=sizes,
        group=self.device_group,
    )
    total = shares[0]
    for share in shares[1:]:
        total = total + share
    return total


def _as_bytes(x_R: torch.Tensor) -> torch.Tensor:
    """View ``x_R`` (R rows of any shape and type) as R rows of bytes."""
    width = math.prod(x_R.shape[1:]) * x_R.element_size()
    # contiguous() would keep a single row's stride, which a view as bytes refuses.
    return x_R.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8).view(x_R.shape[0], width)
