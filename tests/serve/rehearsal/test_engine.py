"""r1-nano answers on CPU ranks as it does in transformers, in every layout two ranks allow."""

from __future__ import annotations

from typing import Any

import pytest
from r1_cluster.catalog import MODELS

pytestmark = pytest.mark.timeout(300)

# Log-probabilities down to -30 in float32, summed in another order by other kernels: 1e-4 was measured. Wrong rotary
# embedding is off by whole units.
SAME = 1e-3


@pytest.fixture(scope="module")
def alone(probe: Any) -> Any:
    return probe("engine", "1", "1")


def test_transformers_and_vllm_give_the_same_logits(alone: Any) -> None:
    assert alone["difference"]["logprob"] < SAME


def test_greedy_tokens_are_transformers_first_choice(alone: Any) -> None:
    assert alone["difference"]["regret"] < SAME


def test_an_answer_does_not_depend_on_who_else_is_served(alone: Any) -> None:
    assert alone["alone"] == alone["tokens"]


def test_resubmitting_the_tokens_so_far_continues_the_answer(alone: Any) -> None:
    assert alone["resumed"] == [tokens[20:] for tokens in alone["tokens"]]


def test_tensor_and_expert_parallel_ranks_give_the_same_answers(alone: Any, probe: Any) -> None:
    assert probe("engine", "2", "1")["tokens"] == alone["tokens"]


def test_data_and_expert_parallel_ranks_give_the_same_answers(alone: Any, probe: Any) -> None:
    assert probe("engine", "1", "2")["tokens"] == alone["tokens"]


def test_a_request_served_alone_by_tensor_and_data_parallel_ranks_is_answered_the_same(alone: Any, probe: Any) -> None:
    assert probe("engine", "2", "2")["tokens"] == alone["tokens"]


def test_the_catalog_counts_the_kv_cache_as_vllm_does(alone: Any) -> None:
    counted = (1 << 27) / MODELS["r1-nano"].kv_bytes_per_token("float32")
    assert alone["kv_tokens"] == pytest.approx(counted, rel=0.01)
