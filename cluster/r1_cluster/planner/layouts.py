"""Which ways there are to split a model over a fleet, and why the others are none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from r1_cluster.catalog import Architecture, GroupedAttention
from r1_cluster.catalog.shapes import BLOCK
from r1_cluster.perf.layout import Split
from r1_cluster.planner.request import FleetSpec

PIPELINES = (1, 2, 4)
LARGEST_GANG = 256  # GPUs; R1's experts run out there


@dataclass(frozen=True)
class Rejected:
    """A layout that was looked at, and the first thing that rules it out.

    ``fits``: its weights and KV cache do, and it is too slow or too small. ``missing``: by how much, 0.1 is a tenth.
    """

    layout: str
    reason: str
    fits: bool = False
    missing: float = float("inf")


def splits(model: Architecture, fleet: FleetSpec) -> tuple[list[Split], list[Rejected]]:
    """Every split of one gang that the model's shape and the fleet's wiring allow, smallest first, and the others."""
    allowed: list[Split] = []
    rejected: dict[str, Rejected] = {}
    for split in _all(model, fleet.count):
        fault = _fault(model, fleet, split)
        if fault is None:
            allowed.append(split)
        else:
            rejected.setdefault(fault, Rejected(str(split), fault))
    return sorted(allowed, key=lambda split: split.gpus), list(rejected.values())


def _all(model: Architecture, count: int) -> Iterator[Split]:
    """Powers of two; data-parallel attention only with experts to share, pipelines only without it."""
    count = min(count, LARGEST_GANG)
    tensors = [1 << power for power in range(count.bit_length())]
    for tensor in tensors:
        for pipeline in PIPELINES:
            if tensor * pipeline <= count:
                yield Split(tensor=tensor, expert_tensor=tensor, pipeline=pipeline)
                if model.experts and tensor > 1:
                    yield Split(tensor=tensor, expert=tensor, pipeline=pipeline)
        if model.experts:
            for data in tensors[1:]:
                if tensor * data <= count:
                    yield Split(tensor=tensor, data=data, expert=tensor * data)


def _fault(model: Architecture, fleet: FleetSpec, split: Split) -> str | None:
    tensor, experts = split.tensor, model.experts
    if tensor > fleet.domain:
        joined = "NVLink" if fleet.gpu and fleet.gpu.name != "MI300X" else "the node's links"
        return f"TP{tensor}: {joined} joins {fleet.domain} GPUs, and tensor parallelism does not leave them"
    if fleet.per_node % tensor and tensor % fleet.per_node:
        return f"TP{tensor}: does not fill nodes of {fleet.per_node} evenly"
    if model.heads % tensor:
        return f"TP{tensor}: {model.heads} attention heads do not divide by {tensor}"
    shape = model.attention
    if isinstance(shape, GroupedAttention) and shape.kv_heads % tensor and tensor % shape.kv_heads:
        return f"TP{tensor}: {shape.kv_heads} KV heads and {tensor} ranks do not divide"
    if experts and split.expert > experts.routed:
        return f"EP{split.expert}: more ranks than the {experts.routed} experts"
    if experts and model.weight_dtype == "fp8_block" and experts.intermediate_size // split.expert_tensor % BLOCK:
        each = experts.intermediate_size / split.expert_tensor
        return f"TP{tensor} without EP: experts {each:g} wide, and FP8 scales are for blocks of {BLOCK}"
    if split.pipeline > model.layers:
        return f"PP{split.pipeline}: more stages than the {model.layers} layers"
    return None
