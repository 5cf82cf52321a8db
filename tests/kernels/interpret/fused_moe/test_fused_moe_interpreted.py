"""fused_moe/: every regime against the reference. Bounds are in cases.py and are never relaxed."""

from __future__ import annotations

import pytest
import torch
from r1_kernels.cases import agree, distinct, make
from r1_kernels.counters import counters
from r1_kernels.fused_moe.op import Experts, fused_moe
from r1_kernels.fused_moe.tiles import MoeTiles, Tile, choose

SPLIT = MoeTiles("few", Tile(32, 128, 128, 2), Tile(32, 128, 128, 4))
MANY = MoeTiles("many", Tile(64, 128, 128, swap=False), Tile(64, 128, 128, swap=False))
MIDDLE = MoeTiles("middle", Tile(16, 128, 128), Tile(16, 128, 128))


@pytest.mark.parametrize("tokens", [0, 1, 3, 8, 33, 128])
@pytest.mark.parametrize("fp8", [True, False])
def test_the_sum_over_experts_is_the_references(tokens: int, fp8: bool) -> None:
    case = make(tokens, fp8=fp8)
    got = case.run()
    assert got.shape == (tokens, 256)
    if tokens:
        agree(got, case.expected())


@pytest.mark.parametrize("tiles", [SPLIT, MIDDLE, MANY], ids=["split-K", "middle", "many"])
@pytest.mark.parametrize("ue8m0", [False, True])
def test_every_regime_gives_the_same_sum(tiles: MoeTiles, ue8m0: bool) -> None:
    case = make(24, fp8=True, hidden=512, width=256, ue8m0=ue8m0)
    agree(case.run(tiles), case.expected())
    assert int(counters(case.x.device).abs().sum()) == 0


@pytest.mark.parametrize("tiles", [SPLIT, MIDDLE, MANY], ids=["split-K", "middle", "many"])
@pytest.mark.parametrize("expert", [0, 15])
def test_all_tokens_may_go_to_one_expert(tiles: MoeTiles, expert: int) -> None:
    case = make(32, fp8=True, ids=torch.full((32, 1), expert, dtype=torch.int32))
    agree(case.run(tiles), case.expected())


@pytest.mark.parametrize("tiles", [SPLIT, MIDDLE], ids=["split-K", "middle"])
def test_weights_of_an_expert_without_tokens_are_never_read(tiles: MoeTiles) -> None:
    case = make(8, fp8=True, ids=distinct(8, 16, 4, torch.Generator().manual_seed(1), skip=8))
    expected = case.expected()
    for weights in (case.experts.w13_ENH, case.experts.w2_EHI):
        weights[:8].view(torch.uint8).fill_(0x7F)  # NaN
    agree(case.run(tiles), expected)


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("tokens", [3, 33])
@pytest.mark.parametrize("fp8", [True, False])
def test_the_ranks_of_expert_parallelism_sum_to_the_whole(ranks: int, tokens: int, fp8: bool) -> None:
    case = make(tokens, fp8=fp8)
    parts = [case.on_rank(rank, ranks) for rank in range(ranks)]
    results = [part.run() for part in parts]
    whole = sum(part.expected() for part in parts)
    torch.testing.assert_close(whole, case.expected(), rtol=1e-4, atol=1e-4)
    for part, result in zip(parts, results, strict=True):
        agree(result, part.expected())


@pytest.mark.parametrize("tiles", [None, MIDDLE, MANY], ids=["few", "middle", "many"])
def test_a_rank_none_of_whose_experts_are_chosen_gives_zeros(tiles: MoeTiles | None) -> None:
    case = make(8, fp8=True, ids=distinct(8, 16, 4, torch.Generator().manual_seed(1), skip=8)).on_rank(0, 2)
    assert (case.run(tiles) == 0).all()


def test_the_same_call_gives_the_same_bits() -> None:
    case = make(24, fp8=True)
    for tiles in (SPLIT, MIDDLE):
        assert torch.equal(case.run(tiles), case.run(tiles))


def test_r1_nanos_shape_leaves_ragged_blocks() -> None:
    case = make(5, fp8=False, experts=32, topk=8, hidden=192, width=64)
    agree(case.run(), case.expected())
    wide = MoeTiles("many", Tile(64, 64, 128, swap=False), Tile(64, 128, 128, swap=False))
    agree(case.run(wide), case.expected())


def test_one_token_of_r1s_hidden_size_is_split_over_k() -> None:
    case = make(1, fp8=True, experts=2, topk=2, hidden=7168, width=1024)
    assert choose(case.experts.shape(1, 2)).gate_up.splits > 1
    agree(case.run(), case.expected())


@pytest.mark.parametrize("tiles", [None, MIDDLE], ids=["few", "middle"])
def test_an_expert_beyond_two_to_the_31_elements_is_found(tiles: MoeTiles | None) -> None:
    small = make(2, fp8=True, experts=2, topk=2, hidden=8192, width=128)
    e = small.experts
    count = 1100  # × 2 · 128 · 8192 elements: the last expert begins beyond 2^31 bytes; untouched pages cost nothing
    w13 = torch.empty(count, 256, 8192, dtype=torch.float8_e4m3fn)
    w2 = torch.empty(count, 8192, 128, dtype=torch.float8_e4m3fn)
    s13, s2 = torch.empty(count, 2, 64), torch.empty(count, 64, 1)
    assert e.w13_scale is not None
    assert e.w2_scale is not None
    for here, there in ((0, 1), (1, count - 1)):
        w13[there], w2[there], s13[there], s2[there] = (
            e.w13_ENH[here], e.w2_EHI[here], e.w13_scale[here], e.w2_scale[here],
        )  # fmt: skip
    assert (count - 1) * w13[0].numel() > 2**31
    ids = torch.where(small.ids == 0, 1, count - 1).to(torch.int32)
    got = fused_moe(small.x, Experts(w13, w2, s13, s2), small.weights, ids, x_scale=small.x_scale, tiles=tiles)
    agree(got, small.expected())
