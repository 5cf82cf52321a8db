"""A workload as jobs, in the order of their times."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from r1_cluster.simulator.job import Job
from r1_cluster.workload import Workload


def jobs_of(workload: Workload, requests: int, seed: int) -> Iterator[Job]:
    """``requests`` of them, or as many as its arrivals have times for; drawn in chunks, the same for a seed."""
    rng = np.random.default_rng(seed)
    times = workload.arrivals.times(np.random.default_rng(seed + 1))
    shares = [c.prefix_share for c in workload.classes]
    numbers = itertools.count()
    for chunk in workload.draw(rng):
        columns = (chunk.kind, chunk.prompt, chunk.thinking, chunk.answer, chunk.group)
        for kind, prompt, thinking, answer, group in zip(*(c.tolist() for c in columns), strict=True):
            number, at = next(numbers), next(times, None)
            if at is None or number >= requests:
                return
            yield Job(number, at, kind, prompt, thinking, answer, (group * 64 + kind, int(prompt * shares[kind])))
