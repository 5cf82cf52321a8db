from __future__ import annotations

import pytest
from r1_serve.router.slo import WINDOW_S, Slo


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_without_requests_nothing_burns() -> None:
    assert Slo(1.0, Clock()).burn() == 0.0


def test_one_miss_in_a_hundred_burns_the_budget_just_in_time() -> None:
    slo = Slo(1.0, Clock())
    for i in range(100):
        slo.count(i != 50)
    assert slo.burn() == pytest.approx(1.0)


def test_what_is_older_than_the_window_is_forgotten() -> None:
    clock = Clock()
    slo = Slo(1.0, clock)
    slo.count(False)
    clock.now += WINDOW_S / 2
    slo.count(True)
    assert slo.burn() == pytest.approx(50.0)
    clock.now += WINDOW_S / 2 + 5
    assert slo.burn() == 0.0
    clock.now += WINDOW_S
    assert slo.burn() == 0.0
