"""Tokens a second of a round: while all streams have something to wait for."""

from __future__ import annotations

import pytest
from r1_bench.peers.load import Answer, full_rate


def test_the_first_wave_and_the_last_answers_do_not_count() -> None:
    # Two streams at 10 tokens a second each, after a second in which the first two prompts are computed.
    answers = [Answer(0, 1, 2, 11), Answer(0, 1, 3, 21), Answer(2, 2.1, 4, 20), Answer(3, 3.1, 9, 60)]
    # From 1 to 3 s: 10 tokens and the first of one, 20 and the first of the other, 9 and the first of the third.
    assert full_rate(answers, streams=2) == pytest.approx((11 + 21 + 1 + 9) / 2)
    longer = [*answers[:-1], Answer(3, 3.1, 90, 870)]
    assert full_rate(longer, streams=2) == full_rate(answers, streams=2)


def test_a_round_that_is_never_full_counts_whole() -> None:
    answers = [Answer(0, 1, 2, 10), Answer(0, 1, 5, 40)]
    assert full_rate(answers, streams=2) == 10
