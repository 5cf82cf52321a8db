"""Limits each operator must keep, whatever the fitted shares."""

from __future__ import annotations

import pytest
from r1_cluster.catalog import GPUS, MODELS
from r1_cluster.perf.constants import fitted
from r1_cluster.perf.operators import all_reduce, distinct, exchange, gemm, latent_decode, roof, routed_experts

H200, C = GPUS["H200"], fitted()
R1 = MODELS["deepseek-r1"]


def experts(tokens: float, *, tensor: int = 1, ranks: int = 1) -> float:
    assert R1.experts is not None
    return routed_experts(
        H200,
        C.kernels["triton"],
        R1.experts,
        R1.hidden_size,
        R1.expert_bytes,
        tokens,
        tensor=tensor,
        ranks=ranks,
        skew=C.routing.skew,
        hot=C.routing.hot,
        dtype="fp8_block",
    )


@pytest.mark.parametrize(("compute", "memory"), [(1.0, 1e-3), (1e-3, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_far_from_the_knee_the_roof_is_the_slower_of_the_two(compute: float, memory: float) -> None:
    assert roof(compute, memory) == pytest.approx(1.0)


def test_the_roof_is_symmetric_and_zero_for_no_work() -> None:
    assert roof(2.0, 3.0) == roof(3.0, 2.0) > 3.0
    assert roof(0.0, 0.0) == 0.0


def test_a_product_of_one_token_streams_its_weight() -> None:
    time = gemm(H200, C.gemm["bfloat16"], 1, 16384, 7168, "bfloat16")
    shares = C.gemm["bfloat16"]
    assert time - shares.fixed == pytest.approx(2 * 16384 * 7168 / (H200.bandwidth * shares.bandwidth), rel=0.01)


def test_a_large_product_runs_at_its_share_of_peak() -> None:
    shares = C.gemm["fp8_block"]
    time = gemm(H200, shares, 65536, 16384, 7168, "fp8_block")
    assert 2 * 65536 * 16384 * 7168 / time == pytest.approx(shares.compute * H200.rate("fp8"), rel=0.02)


def test_one_token_touches_as_many_experts_as_it_is_routed_to() -> None:
    assert distinct(256, 8, 1, 0.0) == pytest.approx(8)
    assert distinct(256, 8, 1, 0.6) == pytest.approx(8)


def test_uniform_routing_touches_what_the_formula_says_and_skew_touches_fewer() -> None:
    assert distinct(256, 8, 64, 0.0) == pytest.approx(256 * (1 - (1 - 8 / 256) ** 64))
    assert distinct(256, 8, 64, 0.9) < distinct(256, 8, 64, 0.5) < distinct(256, 8, 64, 0.0)
    assert distinct(256, 8, 1e5, 0.5) == pytest.approx(256)


def test_experts_never_get_faster_with_more_tokens() -> None:
    times = [experts(tokens) for tokens in (1, 2, 8, 64, 512, 4096, 32768)]
    assert times == sorted(times)


def test_cutting_or_spreading_experts_makes_each_rank_faster() -> None:
    for tokens in (16, 4096):
        assert experts(tokens, tensor=8) < experts(tokens)
        assert experts(tokens, ranks=8) < experts(tokens)


def test_decode_attention_is_bandwidth_bound_with_few_heads_and_compute_bound_with_all() -> None:
    cached = 1e6
    few = latent_decode(H200, C.attention, cached, 16, "bfloat16", compute=0.8) - C.attention.fixed
    share = C.attention.decode_bandwidth
    assert few == pytest.approx(cached * 1152 / (H200.bandwidth * share), rel=0.01)
    every = latent_decode(H200, C.attention, cached, 128, "fp8", compute=0.8) - C.attention.fixed
    assert every == pytest.approx(cached * 128 * 2 * 1088 / (0.8 * H200.rate("bfloat16")), rel=0.05)


def test_one_rank_needs_no_collective() -> None:
    assert all_reduce(H200, C.collectives, 1e6, 1) == 0
    assert exchange(H200, C.collectives, 128, 7168, 8, 1, latency=True) == 0


def test_crossing_a_domain_costs_more_than_staying_in_it() -> None:
    assert all_reduce(H200, C.collectives, 1e6, 16) > all_reduce(H200, C.collectives, 1e6, 8)
    for latency in (True, False):
        near = exchange(H200, C.collectives, 128, 7168, 8, 8, latency=latency)
        assert exchange(H200, C.collectives, 128, 7168, 8, 16, latency=latency) > near
        rack = exchange(GPUS["GB200"], C.collectives, 128, 7168, 8, 64, latency=latency)
        assert rack < exchange(H200, C.collectives, 128, 7168, 8, 64, latency=latency)


@pytest.mark.parametrize(("ranks", "published"), [(16, 313e-6), (32, 428e-6), (64, 487e-6), (128, 561e-6)])
def test_deepeps_published_low_latency_times_are_met(ranks: int, published: float) -> None:
    # DeepEP's README: H800, 128 tokens, hidden 7168, top 8, FP8 dispatch plus BF16 combine.
    time = exchange(GPUS["H800"], C.collectives, 128, 7168, 8, ranks, latency=True)
    assert time == pytest.approx(published, rel=0.2)
