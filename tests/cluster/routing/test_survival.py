"""The histogram learns how long things last, cut-off ones included."""

from __future__ import annotations

import random

import numpy as np
import pytest
from r1_cluster.routing.survival import BINS, EDGES, Curve, Histogram, bin_of, lognormal_hazards

FLAT = np.full(BINS, 0.1)


def curve(histogram: Histogram, strength: float = 1e-6) -> Curve:
    return Curve.of(histogram.hazards(FLAT, strength))


@pytest.mark.parametrize("length", [0, 1, 2, 3, 7, 8, 100, 4095, 4096, 1_000_000])
def test_a_length_lies_within_its_bin(length: int) -> None:
    at = bin_of(length)
    assert EDGES[at] <= length + 1e-6
    assert length < EDGES[at + 1] or at == BINS - 1


def test_lengths_past_the_last_edge_count_in_the_last_bin() -> None:
    assert bin_of(1 << 40) == BINS - 1


def test_quantiles_follow_what_was_seen_to_a_bins_width() -> None:
    seen = Histogram(half_life=1e9)
    rng = random.Random(1)
    lengths = sorted(round(rng.lognormvariate(7, 1)) for _ in range(20_000))
    for length in lengths:
        seen.observe(length)
    for q in (0.1, 0.5, 0.9, 0.99):
        assert curve(seen).quantile(q) == pytest.approx(lengths[int(q * len(lengths))], rel=0.1)


def test_what_was_cut_off_counts_as_at_least_so_long() -> None:
    """Half of the thoughts are cut at 1,000: the estimate is that of the whole ones all the same."""
    cut, whole = Histogram(1e9), Histogram(1e9)
    rng = random.Random(2)
    for number in range(20_000):
        length = round(rng.lognormvariate(7, 1))
        whole.observe(length)
        limit = 1000 if number % 2 else 1 << 30
        cut.observe(min(length, limit), censored=length > limit)
    for q in (0.25, 0.5, 0.75, 0.9):
        assert curve(cut).quantile(q) == pytest.approx(curve(whole).quantile(q), rel=0.1)


def test_a_long_tail_that_has_lasted_is_expected_to_last() -> None:
    tail = Curve.of(lognormal_hazards(900, 1.3))
    left = [tail.quantile(0.5, age) - age for age in (0, 1000, 4000, 16000)]
    assert left == sorted(left)


def test_survival_given_an_age_starts_at_one_and_falls() -> None:
    alive = Curve.of(lognormal_hazards(900, 1.1)).survival(500, np.array([0.0, 100.0, 1000.0, 10_000.0]))
    assert alive[0] == 1.0
    assert list(alive) == sorted(alive, reverse=True)
    assert alive[-1] > 0


def test_past_all_that_was_seen_the_next_token_is_the_last() -> None:
    alive = Curve.of(np.ones(BINS)).survival(50, np.array([0.0, 1.0]))
    assert list(alive) == [1.0, 0.0]


def test_old_observations_fade_by_the_half_life() -> None:
    seen = Histogram(half_life=100)
    for _ in range(1000):
        seen.observe(100)
    for _ in range(1000):
        seen.observe(10_000)
    assert curve(seen).quantile(0.5) > 9000


def test_fading_stays_exact_over_very_many_observations() -> None:
    seen = Histogram(half_life=1)
    for _ in range(500):
        seen.observe(64)
    assert curve(seen).quantile(0.5) == pytest.approx(64, rel=0.2)


def test_histograms_of_two_routers_merge_to_one() -> None:
    a, b, both = (Histogram(1e12) for _ in range(3))
    for length in range(1, 400):
        (a if length % 2 else b).observe(length)
        both.observe(length)
    a.merge(b)
    assert a.observations == both.observations
    assert curve(a).alive == pytest.approx(curve(both).alive, abs=1e-6)


def test_without_observations_the_prior_holds() -> None:
    assert Histogram().hazards(FLAT, 8.0) == pytest.approx(FLAT)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="a length is -1"):
        Histogram().observe(-1)
    with pytest.raises(ValueError, match="half_life is 0"):
        Histogram(0)
    with pytest.raises(ValueError, match="quantile is 2"):
        Curve.of(FLAT).quantile(2)
