"""Length distributions: means, quantiles and samples agree, with and without a limit."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from r1_cluster.workload.lengths import Empirical, Fixed, LogNormal

THOUGHT = LogNormal(median=2000, sigma=1.0, high=30_000)
KINDS = (
    Fixed(tokens=700),
    THOUGHT,
    LogNormal(median=100, sigma=0.5, low=80, high=500),
    Empirical(knots=(0, 100, 400, 5000)),
)


@pytest.mark.parametrize("limit", [None, 0, 300, 2000, 1 << 30])
@pytest.mark.parametrize("lengths", KINDS, ids=lambda each: each.kind)
def test_mean_quantiles_and_share_above_are_those_of_the_samples(
    lengths: Fixed | LogNormal | Empirical, limit: int | None
) -> None:
    cut = lengths.censored(limit)
    drawn = cut.sample(np.random.default_rng(7), 200_000)
    assert cut.mean() == pytest.approx(drawn.mean(), rel=0.01, abs=0.6)
    for q in (0.1, 0.5, 0.95):
        assert cut.quantile(q) == pytest.approx(np.quantile(drawn, q), rel=0.03, abs=3)
    for edge in (50, 300, 2500):
        assert cut.above(edge) == pytest.approx((drawn > edge).mean(), abs=0.01)
    assert limit is None or drawn.max() <= limit


def test_a_budget_cuts_the_tail_and_leaves_the_rest() -> None:
    cut = THOUGHT.censored(4000)
    assert cut.quantile(0.5) == THOUGHT.quantile(0.5) == 2000
    assert cut.quantile(0.99) == 4000
    assert THOUGHT.above(4000) == pytest.approx(0.244, abs=0.001)
    assert cut.censored(8000) == cut


def test_a_sample_is_the_same_for_a_seed() -> None:
    one, two = (THOUGHT.sample(np.random.default_rng(3), 10).tolist() for _ in range(2))
    assert one == two


@pytest.mark.parametrize("q", [-0.1, 1.1])
def test_a_quantile_lies_between_none_and_all(q: float) -> None:
    for lengths in KINDS:
        with pytest.raises(ValueError, match="give 0 to 1"):
            lengths.quantile(q)


def test_lengths_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValidationError, match="above high"):
        LogNormal(median=5, sigma=1, low=10, high=5)
    with pytest.raises(ValidationError, match="none below"):
        Empirical(knots=(3, 2))
    with pytest.raises(ValueError, match="no lengths"):
        Empirical.of(np.array([], dtype=np.int64))
