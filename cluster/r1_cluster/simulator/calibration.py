"""From measured steps and first tokens to the costs that a simulation takes: a ``Linear`` and how well it fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from r1_cluster.simulator.costs import Linear

Floats = NDArray[np.float64]


class CalibrationError(ValueError):
    """The measurements do not tell what a step costs."""


@dataclass(frozen=True, slots=True)
class Step:
    """A gang's decode step of ``sequences`` that had ``cached`` KV tokens in all: mean seconds over some time."""

    sequences: int
    cached: float
    seconds: float


@dataclass(frozen=True, slots=True)
class First:
    """Seconds to the first token of a prompt that met an idle gang."""

    prompt_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Beside:
    """Seconds that a prompt, computed beside a running batch, held that up."""

    prompt_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """``linear`` without its ``kv_tokens``, which a Plan gives. Errors are relative, of each measurement in order."""

    linear: Linear
    step_errors: tuple[float, ...]
    first_errors: tuple[float, ...]


def calibrate(steps: Sequence[Step], firsts: Sequence[First], besides: Sequence[Beside] = ()) -> Calibration:
    """Fit each in relative terms: a step of 5 ms and one of 500 count alike. No cost is below 0. ``besides`` tell how
    much of a first token's fixed part holds up others; without them none does.

    Raises CalibrationError where batches, contexts or prompts do not differ enough to tell their costs apart.
    """
    _vary("batches", [step.sequences for step in steps], 2.0)
    _vary("contexts", [step.cached / step.sequences for step in steps], 1.5)
    _vary("prompts", [first.prompt_tokens for first in firsts], 2.0)
    columns = np.array([(1.0, step.sequences, step.cached) for step in steps])
    measured = np.array([step.seconds for step in steps])
    step_s, sequence_s, kv_token_s = _fit(columns, measured)
    prompts = np.array([(1.0, first.prompt_tokens, first.prompt_tokens**2 / 2) for first in firsts])
    waits = np.array([first.seconds for first in firsts])
    fixed_s, prompt_token_s, prompt_pair_s = _fit(prompts, waits)
    # What a first token takes besides the step that brings it and its tokens.
    rest_s = max(0.0, fixed_s - step_s)
    held_up = [b.seconds - prompt_token_s * b.prompt_tokens - prompt_pair_s * b.prompt_tokens**2 / 2 for b in besides]
    prompt_step_s = min(rest_s, max(0.0, float(np.median(held_up)))) if held_up else 0.0
    linear = Linear(
        step_s=float(step_s),
        sequence_s=float(sequence_s),
        kv_token_s=float(kv_token_s),
        prompt_token_s=float(prompt_token_s),
        kv_tokens=0,
        prompt_pair_s=float(prompt_pair_s),
        prompt_step_s=float(prompt_step_s),
        first_token_s=float(rest_s - prompt_step_s),
    )
    return Calibration(
        linear,
        _errors(columns @ (step_s, sequence_s, kv_token_s), measured),
        _errors(prompts @ (fixed_s, prompt_token_s, prompt_pair_s), waits),
    )


def _vary(what: str, values: Sequence[float], ratio: float) -> None:
    if not values or min(values) <= 0 or max(values) < ratio * min(values):
        raise CalibrationError(
            f"{what} of {', '.join(f'{value:g}' for value in sorted(set(values))) or 'nothing'} do not tell what they "
            f"cost: the largest has to be {ratio:g} times the smallest"
        )


def _fit(columns: Floats, measured: Floats) -> Floats:
    """Least squares of relative errors without negative coefficients: the best of all subsets of the few columns."""
    weighted, ones = columns / measured[:, None], np.ones(len(measured))
    best, least = np.zeros(columns.shape[1]), np.inf
    for count in range(1, columns.shape[1] + 1):
        for kept in combinations(range(columns.shape[1]), count):
            found, *_ = np.linalg.lstsq(weighted[:, kept], ones, rcond=None)
            if found.min() < 0:
                continue
            error = float(((weighted[:, kept] @ found - ones) ** 2).sum())
            if error < least - 1e-12:
                best, least = np.zeros(columns.shape[1]), error
                best[list(kept)] = found
    return best


def _errors(predicted: Floats, measured: Floats) -> tuple[float, ...]:
    return tuple(float(p / m - 1.0) for p, m in zip(predicted, measured, strict=True))
