"""routing/: the kernel against the reference, ties and offsets included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from r1_kernels.counters import counters
from r1_kernels.routing import op, reference

R1: dict[str, Any] = {"groups": 8, "top_groups": 4, "topk": 8, "scale": 2.5}


def logits(tokens: int, experts: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(tokens)
    return torch.randn(tokens, experts, generator=g), torch.randn(experts, generator=g) * 0.1


def places(experts: int, rank: int, ranks: int) -> torch.Tensor:
    share = experts // ranks
    found = torch.full((experts,), -1, dtype=torch.int32)
    found[rank * share : (rank + 1) * share] = torch.arange(share, dtype=torch.int32)
    return found


@pytest.mark.parametrize("tokens", [0, 1, 3, 8, 33, 128])
def test_r1s_routing_is_the_references(tokens: int) -> None:
    x, bias = logits(tokens)
    got = op.route(x, bias, **R1)
    weights, ids = reference.route(x, bias, 8, 4, 8, 2.5)
    assert torch.equal(got.ids_MT, ids)
    torch.testing.assert_close(got.weights_MT, weights, rtol=1e-5, atol=1e-6)


def test_ties_go_to_the_lower_group_and_the_lower_expert() -> None:
    x, bias = torch.zeros(2, 256), torch.zeros(256)
    x[1, 200] = 1.0
    ids = op.route(x, bias, **R1).ids_MT
    assert ids[0].tolist() == list(range(8))
    assert ids[1].tolist() == [200, *range(7)]
    assert torch.equal(ids, reference.route(x, bias, 8, 4, 8, 2.5)[1])


def test_the_bias_chooses_and_does_not_weigh() -> None:
    x, bias = torch.zeros(1, 256), torch.zeros(256)
    bias[248:] = 1.0
    got = op.route(x, bias, **R1)
    assert got.ids_MT[0].tolist() == list(range(248, 256))
    torch.testing.assert_close(got.weights_MT, torch.full((1, 8), 2.5 / 8))


@pytest.mark.parametrize("tokens", [1, 3, 33, 64])
@pytest.mark.parametrize("ranks", [1, 4])
def test_up_to_64_tokens_one_launch_sorts_as_well_and_leaves_its_counter_at_zero(tokens: int, ranks: int) -> None:
    x, bias = logits(tokens)
    mapped = places(256, ranks - 1, ranks) if ranks > 1 else None
    got = op.route(x, bias, **R1, local_experts=256 // ranks if ranks > 1 else None, expert_map=mapped)
    offsets, slots = reference.sort_slots(got.ids_MT, 256 // ranks, mapped)
    assert got.offsets is not None
    assert got.slots is not None
    assert torch.equal(got.offsets, offsets)
    assert torch.equal(got.slots[: len(slots)], slots)
    assert int(counters(x.device).abs().sum()) == 0


@pytest.mark.parametrize("tokens", [1, 33, 600])
@pytest.mark.parametrize("block_m", [16, 64])
def test_sorted_slots_are_a_permutation_cut_into_blocks_of_one_expert(tokens: int, block_m: int) -> None:
    ids = reference.route(*logits(tokens, 64), 8, 4, 8, 1.0)[1]
    mapped = places(64, 1, 2)
    got = op.sort_slots(ids, 32, block_m, expert_map=mapped)
    offsets, slots = reference.sort_slots(ids, 32, mapped)
    assert torch.equal(got.offsets, offsets)
    assert torch.equal(got.slots[: len(slots)], slots)
    inverse = torch.empty(len(slots), dtype=torch.int64)
    inverse[got.slots[: len(slots)].long().argsort()] = torch.arange(len(slots))
    assert sorted(inverse.tolist()) == list(range(len(slots)))
    blocks = got.tiles[: int(got.counts[0])].tolist()
    covered = [at for _, start, end in blocks for at in range(start, min(start + block_m, end))]
    assert covered == list(range(len(slots)))
    assert all(int(offsets[e]) <= start < end == int(offsets[e + 1]) for e, start, end in blocks)
    assert len(blocks) <= op.tile_bound(ids.numel(), 32, block_m)
