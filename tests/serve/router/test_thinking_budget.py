"""A thinking budget is exact to the token, whatever the engine and however tokens are cut into deltas."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import openai
import pytest
from r1_cluster.plan import Plan
from r1_cluster.routing.budget import Asked, BudgetRules, resolve
from r1_cluster.routing.tenants import BudgetPolicy
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.protos import reasoning_pb2 as north
from r1_serve.protos import reasoning_pb2_grpc as rpc
from r1_serve.router.limits import Budget, enforced

ASK: list[Any] = [{"role": "user", "content": "x"}]
EOS = "<｜end▁of▁sentence｜>"
THOUGHT = "1 + 2 + 3 + 4 + 5 + 6"
NATURAL = f"{THOUGHT}\n</think>\n\nIt is 21.{EOS}"
Ids = Callable[[str], list[int]]


def thinker(ids: Ids, per_frame: int = 1) -> Callable[[pb.Submit], Sequence[pb.Delta]]:
    """Thinks THOUGHT to its end unless the prompt has ``</think>``: then it answers."""
    (end,) = ids("</think>")

    def script(submit: pb.Submit) -> list[pb.Delta]:
        tokens = ids(f"It is 21.{EOS}") if end in submit.prompt_token_ids else ids(NATURAL)
        cut = [tokens[at : at + per_frame] for at in range(0, len(tokens), per_frame)]
        deltas = [pb.Delta(token_ids=part) for part in cut]
        deltas[-1].finish = pb.FINISH_STOP
        return deltas

    return script


async def ask(world: Any, **fields: Any) -> Any:
    fields = {"max_tokens": 100} | fields
    known = {name: fields.pop(name) for name in ("max_tokens", "n", "stream") if name in fields}
    return await world.client.chat.completions.create(model="r1-nano", messages=ASK, extra_body=fields, **known)


@pytest.mark.parametrize("per_frame", [1, 2, 3, 100])
async def test_every_budget_is_spent_to_the_token_and_an_answer_follows(world: Any, ids: Ids, per_frame: int) -> None:
    worker = await world.worker(thinker(ids, per_frame))
    thought = ids(f"{THOUGHT}\n")
    for asked in range(len(thought) + 2):
        done = await ask(world, thinking_token_budget=asked)
        message, usage = done.choices[0].message, done.usage
        enough = asked > len(thought)
        assert usage.completion_tokens_details.reasoning_tokens == min(asked, len(thought))
        assert message.content == "It is 21."
        assert THOUGHT.startswith(message.reasoning)
        assert (message.reasoning == THOUGHT) == (asked >= len(ids(THOUGHT)))
        assert done.choices[0].finish_reason == "stop"
        assert done.choices[0].thinking_finish_reason == ("complete" if enough else "budget")
        assert usage.thinking_budget == {"asked": asked, "applied": asked, "used": min(asked, len(thought))}
        closing = ids("</think>\n\n")
        assert usage.completion_tokens == min(asked, len(thought)) + len(closing) + len(ids(f"It is 21.{EOS}"))
    assert world.metric("r1_thoughts_closed_total", model="r1-nano", cause="budget") == len(thought) + 1
    assert world.metric("r1_thoughts_total", model="r1-nano", thought="budget") == len(thought) + 1
    assert worker.submits.qsize() == 2 * len(thought) + 2  # a budget of 0 takes one


async def test_what_is_resubmitted_ends_the_thought_and_has_the_rest_of_max_tokens(world: Any, ids: Ids) -> None:
    worker = await world.worker()
    asking = asyncio.create_task(ask(world, thinking_token_budget=3, max_tokens=50))
    first = await worker.next_submit()
    thought = ids(THOUGHT)
    await worker.send(pb.Delta(request_id=first.request_id, token_ids=thought[:5]))
    assert await worker.next_abort() == first.request_id
    second = await worker.next_submit()
    closing = ids("</think>\n\n")
    assert list(second.prompt_token_ids) == [*first.prompt_token_ids, *thought[:3], *closing]
    assert second.sampling.max_tokens == 50 - 3 - len(closing)
    late = pb.Delta(request_id=first.request_id, token_ids=thought[5:])
    last = pb.Delta(request_id=second.request_id, token_ids=ids("3"), finish=pb.FINISH_LENGTH)
    await worker.send(late, last)
    done = await asking
    assert (done.choices[0].message.content, done.choices[0].finish_reason) == ("3", "length")
    assert done.usage.completion_tokens == 3 + len(closing) + 1


async def test_minus_one_and_none_are_bounded_by_the_room_for_an_answer_only(world: Any, ids: Ids) -> None:
    await world.worker(thinker(ids))
    none, minus_one = await ask(world), await ask(world, thinking_token_budget=-1)
    assert none.choices[0].thinking_finish_reason == minus_one.choices[0].thinking_finish_reason == "complete"
    room = 100 - len(ids("</think>\n\n")) - 25
    for done, asked in ((none, None), (minus_one, -1)):
        assert done.usage.thinking_budget == {"asked": asked, "applied": room, "used": len(ids(f"{THOUGHT}\n"))}


async def test_a_closed_thought_cannot_be_opened_again(world: Any, ids: Ids) -> None:
    worker = await world.worker()
    asking = asyncio.create_task(ask(world, thinking_token_budget=0))
    submit = await worker.next_submit()
    text = pb.Delta(request_id=submit.request_id, token_ids=ids("<think>a b"), finish=pb.FINISH_STOP)
    await worker.send(text)
    done = await asking
    assert (done.choices[0].message.reasoning, done.choices[0].message.content) == ("", "a b")


async def test_half_a_character_at_the_budget_is_shown_as_such_and_not_carried_over(world: Any, ids: Ids) -> None:
    worker = await world.worker()
    asking = asyncio.create_task(ask(world, thinking_token_budget=2))
    submit = await worker.next_submit()
    await worker.send(pb.Delta(request_id=submit.request_id, token_ids=ids("😀")))
    again = await worker.next_submit()
    await worker.send(pb.Delta(request_id=again.request_id, token_ids=ids("b"), finish=pb.FINISH_STOP))
    message = (await asking).choices[0].message
    assert (message.reasoning, message.content) == ("\ufffd", "b")


async def test_each_choice_has_the_budget_and_usage_shows_the_longest(world: Any, ids: Ids) -> None:
    await world.worker(thinker(ids))
    done = await ask(world, thinking_token_budget=4, n=2)
    assert done.usage.completion_tokens_details.reasoning_tokens == 8
    assert done.usage.thinking_budget["used"] == 4


async def test_a_rank_that_dies_after_the_thought_was_closed_changes_nothing(world_of: Any, ids: Ids) -> None:
    world = await world_of(resume_wait_s=60)
    worker = await world.worker()
    asking = asyncio.create_task(ask(world, thinking_token_budget=3))
    submit = await worker.next_submit()
    await worker.send(pb.Delta(request_id=submit.request_id, token_ids=ids(THOUGHT)))
    second = await worker.next_submit()
    await worker.die()
    await world.worker(thinker(ids))
    done = await asking
    assert done.choices[0].message.content == "It is 21."
    assert done.usage.completion_tokens_details.reasoning_tokens == 3
    assert list(second.prompt_token_ids)[-len(ids("</think>\n\n")) :] == ids("</think>\n\n")


async def test_in_a_stream_the_last_chunk_says_how_the_thought_ended(world: Any, ids: Ids) -> None:
    await world.worker(thinker(ids))
    chunks = [chunk async for chunk in await ask(world, thinking_token_budget=2, stream=True)]
    assert chunks[-1].choices[0].model_dump()["thinking_finish_reason"] == "budget"


async def test_over_grpc_the_budget_and_what_came_of_it_have_fields(world: Any, ids: Ids) -> None:
    await world.worker(thinker(ids))
    async with grpc.aio.insecure_channel(world.grpc) as channel:
        request = north.ChatRequest(messages=[north.Message(role="user", content="x")], thinking_token_budget=2)
        events = [event async for event in rpc.ReasoningStub(channel).Chat(request)]
    usage = events[-1].usage
    assert (usage.thinking_budget_asked, usage.thinking_budget_applied, usage.longest_thought_tokens) == (2, 2, 2)
    assert events[-2].finished.thinking_finish_reason == "budget"


async def test_a_budget_for_a_model_that_does_not_think_is_refused(world_of: Any, says: Any) -> None:
    value = Plan.load("nano-tp1").model_dump()
    value["model"] |= {"reasoning": False}
    plan = Plan.model_validate(value)
    world = await world_of([plan])
    await world.worker(says("hello"), plan=plan)
    with pytest.raises(openai.BadRequestError, match="does not think"):
        await ask(world, thinking_token_budget=5)
    assert (await ask(world)).choices[0].message.content == "hello"


@pytest.mark.parametrize("bad", [-2, "5", 1.5, 1 << 31])
async def test_a_malformed_budget_names_its_field(world: Any, bad: Any) -> None:
    with pytest.raises(openai.BadRequestError) as fault:
        await ask(world, thinking_token_budget=bad)
    assert fault.value.param == "thinking_token_budget"


@pytest.mark.parametrize(
    ("asked", "max_tokens", "applied"),
    [
        (None, 100, 73),
        (-1, 100, 73),
        (10, 100, 10),
        (0, 100, 0),
        (100, 100, 73),  # 2 for </think> and the blank line, 25 for the answer
        (9999, 8192, 8192 - 2 - 1024),
        (5, 4, 1),
        (5, 3, 0),
        (5, 2, None),  # no room for an answer at all
        (5, 1, None),
    ],
)
def test_an_answer_always_has_room(asked: int | None, max_tokens: int, applied: int | None) -> None:
    rules = BudgetRules(closing_tokens=2)
    resolved = resolve(Asked(tokens=asked), BudgetPolicy(), rules, max_tokens=max_tokens, saturation=0.0)
    assert enforced(asked, resolved, max_tokens, closing=2) == Budget(asked, applied)
