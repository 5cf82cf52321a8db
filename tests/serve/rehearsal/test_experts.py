"""CPU experts split over ranks. Once vLLM reads the map itself, ``needed`` turns false and these still pass."""

from __future__ import annotations

from typing import Any

import pytest

CLOSE = 1e-5  # float32 sums of 4 experts x 32 products in another order


@pytest.fixture(scope="module")
def facts(probe: Any) -> Any:
    return probe("experts", plugins=False)


@pytest.mark.parametrize("split", ["whole", "swapped", "halves", "odd_shares"])
def test_the_ranks_sum_to_every_tokens_experts(facts: Any, split: str) -> None:
    assert facts[split] < CLOSE


def test_a_rank_without_any_of_the_experts_adds_nothing(facts: Any) -> None:
    assert facts["none_of_mine"] == 0.0


def test_the_piece_is_needed_exactly_while_vllm_ignores_the_map(facts: Any) -> None:
    assert facts["upstream_whole"] < CLOSE
    assert facts["needed"] == (facts["upstream_swapped"] > CLOSE)


def test_once_applied_the_piece_is_not_applied_again(facts: Any) -> None:
    assert not facts["needed_after"]
