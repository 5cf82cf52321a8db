"""Uneven gathers and scatters on gloo. Once vLLM has its own, ``needed`` turns false and these still pass."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="module")
def facts(probe: Any) -> Any:
    return probe("collectives", plugins=False)


@pytest.mark.parametrize("world", [2, 3])
def test_every_rank_gets_all_rows_and_its_share_of_the_sums_bit_for_bit(facts: Any, world: int) -> None:
    assert facts[f"wrong_on_{world}"] == []


def test_the_piece_is_needed_exactly_while_vllm_refuses(facts: Any) -> None:
    assert facts["needed"] == bool(facts["upstream_refuses"])


def test_once_applied_the_piece_is_not_applied_again(facts: Any) -> None:
    assert not facts["needed_after"]
