"""Rotary embedding of MLA's query on CPU. Once vLLM mends its kernel, ``needed`` turns false and these still pass."""

from __future__ import annotations

from typing import Any

import pytest

EXACT = 1e-6  # float32, numbers of order one


@pytest.fixture(scope="module")
def facts(probe: Any) -> Any:
    return probe("rotary", plugins=False)


@pytest.mark.parametrize("layout", ["mla, interleaved", "mla, neox", "dense, interleaved", "dense, neox"])
def test_the_embedding_rotates_what_a_model_passes_it(facts: Any, layout: str) -> None:
    assert facts["with_piece"][layout] < EXACT


def test_the_piece_is_needed_exactly_while_vllm_rotates_mla_wrongly(facts: Any) -> None:
    assert facts["needed"] == (facts["upstream"]["mla, interleaved"] > EXACT)


def test_once_applied_the_piece_is_not_applied_again(facts: Any) -> None:
    assert not facts["needed_after"]
    assert facts["second_register_changes_nothing"]
