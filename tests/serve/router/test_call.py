"""A call's reader misses nothing, whenever it wakes."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from r1_cluster.routing.tenants import Tenant
from r1_serve.errors import WorkerLost
from r1_serve.router.call import Call, Finished
from r1_serve.router.choice import Thought
from r1_serve.router.models import ServedModel
from r1_serve.router.request import ChatRequest, Message


@pytest.fixture
async def call() -> Call:
    request = ChatRequest(model="m", messages=(Message(role="user", content="x"),))
    return Call(
        "id", request, cast(ServedModel, None), Tenant(name="t"), timeout_s=60, created=0,
        clock=asyncio.get_running_loop().time, on_end=lambda *_: None,
    )  # fmt: skip


async def taking_until_the_time_is_up(call: Call) -> asyncio.Task[Any]:
    """A reader whose time is up in the very turn of the loop that follows: it has not noticed yet."""
    reader = asyncio.create_task(call.take(timeout_s=0))
    await asyncio.sleep(0)
    return reader


async def test_an_end_that_comes_as_the_keep_alive_is_due_is_told(call: Call) -> None:
    reader = await taking_until_the_time_is_up(call)
    call.finish(0, "stop", Thought.COMPLETE)
    assert await reader == [Finished(0, "stop", Thought.COMPLETE)]


async def test_an_error_that_comes_as_the_keep_alive_is_due_is_raised(call: Call) -> None:
    reader = await taking_until_the_time_is_up(call)
    call.fail(WorkerLost("gone"))
    with pytest.raises(WorkerLost):
        await reader


async def test_a_reader_whose_time_is_up_gets_nothing_while_nothing_came(call: Call) -> None:
    assert await call.take(timeout_s=0) == []
    call.cancel()
