from __future__ import annotations

import numpy as np
import pytest
from r1_bench.perf.least_squares import fit

X = np.linspace(1, 10, 40)


def test_parameters_are_found_again_from_clean_data() -> None:
    found = fit(lambda p: np.log((p[0] + p[1] * X) / (3 + 0.5 * X)), [1, 1], [0.1, 0.01], [10, 10])
    assert found == pytest.approx([3, 0.5], rel=0.01)


def test_rows_far_off_do_not_steer() -> None:
    measured = 3 + 0.5 * X
    measured[::8] *= 2
    found = fit(lambda p: np.log((p[0] + p[1] * X) / measured), [2, 1], [0.1, 0.01], [10, 10])
    assert found == pytest.approx([3, 0.5], rel=0.1)


def test_bounds_are_kept() -> None:
    found = fit(lambda p: np.log(p * X / (5 * X)), [1], [0.5], [2])
    assert found == pytest.approx([2])
