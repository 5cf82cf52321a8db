"""`r1 leave` and the ranks of a node agree through files, whoever dies on the way."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from r1_serve.workers.leaving import Doorway, leave


class Clock:
    """Sleeping is what makes time pass; ``then`` happens on the first sleep."""

    def __init__(self, then: object = None) -> None:
        self.now = 0.0
        self.then = then

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if callable(self.then):
            self.then()


def test_leaving_ends_when_the_last_rank_is_gone(tmp_path: Path) -> None:
    door = Doorway(tmp_path)
    door.enter()
    clock = Clock(then=door.gone)
    assert leave(tmp_path, 60, clock=clock, sleep=clock.sleep) == 0
    assert 0 < clock.now < 60


def test_a_rank_that_stays_is_waited_for_no_longer_than_asked(tmp_path: Path) -> None:
    Doorway(tmp_path).enter()
    clock = Clock()
    assert leave(tmp_path, 60, clock=clock, sleep=clock.sleep) == 1
    assert clock.now == 60


def test_a_node_without_ranks_is_left_at_once(tmp_path: Path) -> None:
    clock = Clock()
    assert leave(tmp_path / "new", 60, clock=clock, sleep=clock.sleep) == 0
    assert clock.now == 0


def test_a_rank_that_was_killed_is_not_waited_for(tmp_path: Path) -> None:
    most = int(Path("/proc/sys/kernel/pid_max").read_text(encoding="ascii"))
    (tmp_path / f"{most + 1}.rank").touch()
    clock = Clock()
    assert leave(tmp_path, 60, clock=clock, sleep=clock.sleep) == 0


async def test_a_rank_hears_that_it_is_asked(tmp_path: Path) -> None:
    door = Doorway(tmp_path)
    door.enter()
    mine = tmp_path / f"{os.getpid()}.rank"
    assert mine.exists()
    asked = asyncio.create_task(door.asked())
    (tmp_path / "leave").touch()
    await asyncio.wait_for(asked, 10)
    door.gone()
    door.gone()  # twice does no harm
    assert not mine.exists()


async def test_without_a_folder_nobody_is_ever_asked() -> None:
    door = Doorway(None)
    door.enter()
    asked = asyncio.create_task(door.asked())
    await asyncio.sleep(0)
    assert not asked.done()
    asked.cancel()
    door.gone()
