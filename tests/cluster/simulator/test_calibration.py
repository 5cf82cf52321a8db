"""From measurements to costs."""

from __future__ import annotations

import pytest
from r1_cluster.simulator.calibration import Beside, CalibrationError, First, Step, calibrate

TRUE = {"step_s": 0.01, "sequence_s": 5e-4, "kv_token_s": 2e-6}


def step(sequences: int, context: float) -> Step:
    cached = sequences * context
    return Step(sequences, cached, TRUE["step_s"] + TRUE["sequence_s"] * sequences + TRUE["kv_token_s"] * cached)


STEPS = [step(n, context) for n in (1, 4, 16, 64) for context in (100, 900)]
FIRSTS = [First(p, 0.03 + 1e-4 * p + 2e-7 * p * p / 2) for p in (30, 200, 800)]


def test_costs_come_back_from_what_they_make() -> None:
    found = calibrate(STEPS, FIRSTS)
    for name, value in TRUE.items():
        assert getattr(found.linear, name) == pytest.approx(value, rel=1e-6)
    assert found.linear.prompt_token_s == pytest.approx(1e-4, rel=1e-6)
    assert found.linear.prompt_pair_s == pytest.approx(2e-7, rel=1e-6)
    assert found.linear.first_token_s == pytest.approx(0.02), "the step that brings it has its fixed part"
    assert max(map(abs, (*found.step_errors, *found.first_errors))) < 1e-9


def test_what_a_prompt_takes_from_others_is_not_counted_as_its_own_way() -> None:
    beside = Beside(40, 0.003 + 1e-4 * 40 + 2e-7 * 40 * 40 / 2)
    found = calibrate(STEPS, FIRSTS, [beside, beside, Beside(40, 0.5)]).linear
    assert found.prompt_step_s == pytest.approx(0.003), "one that was held up by something else does not count"
    assert found.first_token_s == pytest.approx(0.017)
    assert calibrate(STEPS, FIRSTS, [Beside(40, 0.0)]).linear.prompt_step_s == 0


def test_a_short_step_counts_as_much_as_a_long_one() -> None:
    wrong = Step(1, 100, 2 * step(1, 100).seconds)
    found = calibrate([wrong, *STEPS[1:]], FIRSTS)
    assert abs(found.step_errors[0]) < 0.49, "the fit gave way to it"


def test_no_cost_is_negative_whatever_the_noise() -> None:
    falling = [Step(n, n * context, 0.05 - 1e-4 * n) for n in (1, 8, 64) for context in (50, 500)]
    found = calibrate(falling, [First(30, 0.05), First(100, 0.04)]).linear
    assert min(found.step_s, found.sequence_s, found.kv_token_s, found.prompt_token_s, found.first_token_s) >= 0


@pytest.mark.parametrize(
    ("steps", "firsts", "lacks"),
    [
        ([step(8, 100), step(8, 900)], FIRSTS, "batches of 8 "),
        ([step(1, 100), step(8, 101)], FIRSTS, "contexts of 100, 101 "),
        (STEPS, [First(100, 0.1), First(110, 0.1)], "prompts of 100, 110 "),
        ([], FIRSTS, "batches of nothing "),
    ],
)
def test_what_cannot_be_told_apart_is_said(steps: list[Step], firsts: list[First], lacks: str) -> None:
    with pytest.raises(CalibrationError, match=lacks):
        calibrate(steps, firsts)
