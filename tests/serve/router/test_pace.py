"""gRPC messages are merged over time by how busy the event loop is, not by how many calls are open."""

from __future__ import annotations

import asyncio
import time

import pytest
from r1_serve.router.pace import BUSY, CALM, LONGEST_S, TICK_S, WINDOW_S, Pace


def test_a_loop_that_keeps_up_merges_nothing_however_many_calls_are_open() -> None:
    pace = Pace()
    for _ in range(100):
        pace.observe(CALM)
    assert pace.interval_s == 0


def test_a_busy_loop_waits_longer_up_to_a_limit_a_reader_does_not_see_and_comes_back_once_calm() -> None:
    pace = Pace()
    seen = []
    for _ in range(6):
        pace.observe(BUSY + 0.1)
        seen.append(pace.interval_s)
    assert seen == sorted(seen)
    assert seen[-1] == LONGEST_S <= 0.02
    for _ in range(6):
        pace.observe(CALM - 0.1)
    assert pace.interval_s == 0


@pytest.mark.parametrize("share", [CALM, BUSY])
def test_between_calm_and_busy_nothing_changes_so_that_merging_does_not_undo_itself(share: float) -> None:
    pace = Pace()
    pace.observe(1.0)
    before = pace.interval_s
    pace.observe(share)
    assert pace.interval_s == before


async def test_a_loop_held_up_by_work_is_seen_as_busy_and_the_ticking_ends_with_the_last_call() -> None:
    pace = Pace()
    began = time.monotonic()
    with pace:
        while time.monotonic() - began < 2 * WINDOW_S:
            time.sleep(5 * TICK_S)  # noqa: ASYNC251  # the work
            await asyncio.sleep(0)
        assert pace.interval_s > 0
    pace._tick(asyncio.get_running_loop().time())
    assert pace._timer is None


async def test_a_loop_of_short_steps_that_never_rests_is_busy_though_it_is_hardly_late() -> None:
    pace = Pace()
    began = time.monotonic()
    with pace:
        while time.monotonic() - began < 3 * WINDOW_S:
            step = time.monotonic()
            while time.monotonic() - step < TICK_S / 20:
                pass
            await asyncio.sleep(0)
        assert pace.interval_s > 0
