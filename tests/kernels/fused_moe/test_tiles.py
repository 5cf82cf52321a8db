"""The choice of tiles is a pure function of the shape and the GPU, printable, and fits the kernels' rules."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from r1_kernels.fused_moe import tiles
from r1_kernels.fused_moe.tiles import H100, Shape, choose, parse

TP8 = Shape(1, 8, 256, 256, 7168, 256, True)


@pytest.mark.parametrize("tokens", [1, 2, 8, 16, 17, 32, 33, 64, 128, 256, 1024, 4096, 16384])
@pytest.mark.parametrize(("local", "width"), [(256, 256), (32, 2048), (16, 2048), (8, 2048)])
@pytest.mark.parametrize("fp8", [True, False])
def test_every_choice_keeps_the_kernels_rules(tokens: int, local: int, width: int, fp8: bool) -> None:
    choice = choose(Shape(tokens, 8, local, 256, 7168, width, fp8))
    up, down = choice.gate_up, choice.down
    assert up.block_m == down.block_m
    if fp8:
        assert up.block_n == 128  # a group of the second quantisation
        assert up.block_k == down.block_k == 128
        assert 128 % down.block_n == 0
    assert (choice.regime == "few") == (tokens <= 32)
    if choice.regime == "few":
        assert up.swap
        assert up.block_m >= tokens


def test_few_tokens_split_k_until_programs_fill_the_gpu_and_no_further() -> None:
    splits = {tokens: choose(replace(TP8, tokens=tokens)).gate_up.splits for tokens in (1, 4, 16, 32)}
    assert splits[1] == 8
    assert splits[1] >= splits[4] >= splits[16] >= splits[32] == 1


def test_more_rows_an_expert_take_larger_blocks() -> None:
    blocks = [choose(replace(TP8, tokens=tokens)).gate_up.block_m for tokens in (64, 512, 2048)]
    assert blocks == [16, 16, 64] or blocks == sorted(blocks)


def test_a_tuned_row_is_taken_where_there_is_one_and_only_where_it_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    row = choose(replace(TP8, tokens=16))
    tuned = parse(asdict(row), "tuned on X")
    monkeypatch.setattr(tiles, "_tuned", lambda gpu: {TP8.key: {16: tuned}})
    assert choose(replace(TP8, tokens=8), H100).source == "tuned on X"
    assert choose(replace(TP8, tokens=20), H100).source == "reasoned"  # 16 columns cannot hold 20 tokens
    assert choose(replace(TP8, tokens=8, width=512), H100).source == "reasoned"
