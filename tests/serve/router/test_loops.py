"""The loop guard finds endless repetition of any period and leaves lists, tables and code alone."""

from __future__ import annotations

import asyncio
import random
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.router.loops import EVERY, MAX_PERIOD, MIN_RUN, REPEATS, loops

ASK: list[Any] = [{"role": "user", "content": "x"}]


def first_found(token_ids: list[int]) -> int | None:
    """After how many tokens the guard, looking every EVERY, calls it a loop."""
    return next((n for n in range(EVERY, len(token_ids) + 1, EVERY) if loops(array("I", token_ids[:n]), n)), None)


@pytest.mark.parametrize("period", [1, 2, 3, 7, 31, 32, 33, 64, 100, 511, 1000, MAX_PERIOD])
@pytest.mark.parametrize("before", [0, 1, 500])
def test_a_loop_of_any_period_is_found_soon_after_enough_repeats(period: int, before: int) -> None:
    rng = random.Random(period)
    noise = [rng.randrange(128_000) for _ in range(before)]
    turn = [rng.randrange(128_000) for _ in range(period)]
    enough = max(MIN_RUN, REPEATS * period)
    found = first_found(noise + turn * (enough // period + 200))
    assert found is not None
    assert before + enough <= found <= before + enough + EVERY + period


def test_a_phrase_that_returns_within_the_period_does_not_hide_the_loop() -> None:
    rng = random.Random(0)
    phrase = [rng.randrange(1000) for _ in range(40)]
    turn = [token for i in range(6) for token in (*phrase, 5000 + i)]
    assert first_found(turn * 20) is not None


@pytest.mark.parametrize("fault", [1, 3])
def test_repetition_with_changes_is_no_loop(fault: int) -> None:
    """A table's rows: all alike but for a number in each."""
    row = list(range(20))
    rows = [token for i in range(400) for token in (*row[: 20 - fault], *range(10_000 + i, 10_000 + i + fault))]
    assert first_found(rows) is None


def test_repetition_too_short_is_no_loop() -> None:
    rng = random.Random(1)
    noise = [rng.randrange(128_000) for _ in range(600)]
    assert first_found([*noise, *([7] * (MIN_RUN - 1)), *noise]) is None
    assert first_found([*noise, *(noise[:300] * (REPEATS - 1)), *noise]) is None


def test_what_came_before_the_thought_does_not_count() -> None:
    assert not loops(array("I", [7] * 1000), MIN_RUN - 1)
    assert loops(array("I", [7] * 1000), MIN_RUN)


async def test_a_thought_in_a_loop_is_closed_and_answered(world: Any, ids: Callable[[str], list[int]]) -> None:
    worker = await world.worker()
    turn = ids("so it is 4, wait. ")
    asking = asyncio.create_task(world.client.chat.completions.create(model="r1-nano", messages=ASK))
    submit = await worker.next_submit()
    await worker.send(*(pb.Delta(request_id=submit.request_id, token_ids=turn) for _ in range(100)))
    again = await worker.next_submit()
    await worker.send(pb.Delta(request_id=again.request_id, token_ids=ids("4"), finish=pb.FINISH_STOP))
    done = await asking
    assert done.choices[0].message.content == "4"
    assert done.choices[0].finish_reason == "stop"
    assert done.choices[0].thinking_finish_reason == "loop"
    assert done.usage.completion_tokens_details.reasoning_tokens == MIN_RUN
    assert world.metric("r1_thoughts_closed_total", model="r1-nano", cause="loop") == 1


async def test_the_guard_is_off_by_request_and_never_looks_at_answers(world: Any, says: Any) -> None:
    loop = "so it is 4, wait. " * 60
    await world.worker(says(f"{loop}</think>{loop}"))
    off = await world.client.chat.completions.create(model="r1-nano", messages=ASK, extra_body={"loop_guard": False})
    assert (off.choices[0].message.reasoning, off.choices[0].message.content) == (loop, loop)
    assert off.choices[0].thinking_finish_reason == "complete"
