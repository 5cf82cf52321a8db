"""Robust bounded least squares in the logarithm of each parameter: Levenberg-Marquardt with Cauchy weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
STEP = 1e-3


def fit(
    residuals: Callable[[Vector], Vector],
    start: Sequence[float] | Vector,
    low: Sequence[float] | Vector,
    high: Sequence[float] | Vector,
    *,
    scale: float = 0.08,
    rounds: int = 30,
) -> Vector:
    """Minimise sum(log(1 + (r / scale)^2)) over positive parameters within bounds.

    A residual far beyond ``scale`` counts for little: rows whose configuration was recorded wrongly must not steer.
    """
    bounds = np.log(np.array([low, high], dtype=float))
    x = np.clip(np.log(np.array(start, dtype=float)), *bounds)
    r = residuals(np.exp(x))
    best, damping = _loss(r, scale), 1e-2
    for _ in range(rounds):
        steps = np.where(x + STEP > bounds[1], -STEP, STEP)  # a slope never looks beyond the bounds
        columns = [(residuals(np.exp(x + move)) - r) / move.sum() for move in np.diag(steps)]
        slopes, weights = np.stack(columns, axis=1), 1 / (1 + (r / scale) ** 2)
        matrix, gradient = (slopes * weights[:, None]).T @ slopes, (slopes * weights[:, None]).T @ r
        before = best
        for _ in range(6):
            change = np.linalg.solve(matrix + damping * np.diag(np.diag(matrix) + 1e-9), gradient)
            trial = np.clip(x - change, *bounds)
            moved = residuals(np.exp(trial))
            if _loss(moved, scale) < best:
                x, r, best, damping = trial, moved, _loss(moved, scale), max(damping / 4, 1e-6)
                break
            damping *= 5
        if before - best < 3e-4 * before:
            break
    found: Vector = np.exp(x)
    return found


def _loss(r: Vector, scale: float) -> float:
    return float(np.log1p((r / scale) ** 2).sum())
