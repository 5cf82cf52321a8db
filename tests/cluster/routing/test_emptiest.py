"""The emptiest ranks: always those that a sort would find, whatever moved before."""

from __future__ import annotations

import math
import random

import pytest
from r1_cluster.routing.emptiest import BUCKETS, Emptiest


@pytest.mark.parametrize("seed", range(3))
def test_after_any_moves_the_first_are_those_of_a_sort(seed: int) -> None:
    rng, emptiest = random.Random(seed), Emptiest()
    held: dict[int, tuple[int, int]] = {}  # row: its bucket, and when it came into it
    for moment in range(3000):
        row, share = rng.randrange(40), rng.choice([rng.random() / 20, rng.random() * 3, math.inf])
        if rng.random() < 0.1:
            share = math.inf
            emptiest.discard(row)
        else:
            emptiest.put(row, share)
        if share == math.inf:
            held.pop(row, None)
        elif row not in held or held[row][0] != int(share * BUCKETS):
            held[row] = (int(share * BUCKETS), moment)
        most = rng.randrange(12)
        assert emptiest.first(most) == sorted(held, key=held.__getitem__)[:most]


def test_of_none_there_is_no_first() -> None:
    emptiest = Emptiest()
    emptiest.discard(3)
    assert emptiest.first(8) == []
