"""How much to think, in every dialect: OpenAI's effort, Anthropic's and DeepSeek's ``thinking``, tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc
import openai
import pytest
from r1_cluster.plan import Plan
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.protos import reasoning_pb2 as north
from r1_serve.protos import reasoning_pb2_grpc as rpc

ASK: list[Any] = [{"role": "user", "content": "x"}]
Ids = Callable[[str], list[int]]
# With max_tokens 800, of which 200 are the answer's and three close the thought.
ROOM = 800 - 200 - 3


def thinker(ids: Ids) -> Callable[[pb.Submit], Sequence[pb.Delta]]:
    """Thinks 900 tokens unless its thought is closed: then it answers."""
    (end,) = ids("</think>")

    def script(submit: pb.Submit) -> list[pb.Delta]:
        if end in submit.prompt_token_ids:
            return [pb.Delta(token_ids=ids("21"), finish=pb.FINISH_STOP)]
        return [pb.Delta(token_ids=[t for n in range(300) for t in ids(f"{n} ")][: submit.sampling.max_tokens])]

    return script


@pytest.mark.parametrize(
    ("fields", "budget"),
    [
        ({"reasoning_effort": "none"}, {"asked": 0, "applied": 0, "used": 0, "effort": "none"}),
        ({"reasoning_effort": "minimal"}, {"asked": 256, "applied": 256, "used": 256, "effort": "minimal"}),
        ({"reasoning_effort": "low"}, {"asked": 1024, "applied": ROOM, "used": ROOM, "effort": "low"}),
        ({"reasoning_effort": "high"}, {"asked": -1, "applied": ROOM, "used": ROOM, "effort": "high"}),
        ({"reasoning_effort": "xhigh"}, {"asked": -1, "applied": ROOM, "used": ROOM, "effort": "high"}),
        ({"thinking": {"type": "disabled"}}, {"asked": 0, "applied": 0, "used": 0}),
        ({"thinking": {"type": "enabled", "budget_tokens": 7}}, {"asked": 7, "applied": 7, "used": 7}),
        ({"thinking": {"type": "enabled"}}, {"asked": None, "applied": ROOM, "used": ROOM}),
        ({"thinking_token_budget": 9, "thinking": {"type": "adaptive"}}, {"asked": 9, "applied": 9, "used": 9}),
        (
            {"thinking_token_budget": 9, "reasoning_effort": "high"},
            {"asked": 9, "applied": 9, "used": 9, "effort": "high"},
        ),
    ],
)
async def test_what_was_asked_is_applied_and_told(
    world: Any, ids: Ids, fields: dict[str, Any], budget: dict[str, Any]
) -> None:
    await world.worker(thinker(ids))
    done = await world.client.chat.completions.create(model="r1-nano", messages=ASK, max_tokens=800, extra_body=fields)
    assert done.usage.thinking_budget == budget
    assert done.choices[0].message.content == "21"
    assert done.choices[0].thinking_finish_reason == "budget"


async def test_the_sdks_own_argument_reaches_the_plans_policy(world_of: Any, ids: Ids) -> None:
    value = Plan.load("nano-tp1").model_dump()
    value["limits"]["thinking"] |= {"minimal": 3, "low": 5}
    plan = Plan.model_validate(value)
    world = await world_of([plan])
    await world.worker(thinker(ids), plan=plan)
    for effort, used in (("minimal", 3), ("low", 5), ("none", 0)):
        done = await world.client.chat.completions.create(model="r1-nano", messages=ASK, reasoning_effort=effort)
        assert done.usage.completion_tokens_details.reasoning_tokens == used


async def test_over_grpc_too(world: Any, ids: Ids) -> None:
    await world.worker(thinker(ids))
    async with grpc.aio.insecure_channel(world.grpc) as channel:
        request = north.ChatRequest(messages=[north.Message(role="user", content="x")], reasoning_effort="minimal")
        events = [event async for event in rpc.ReasoningStub(channel).Chat(request)]
        usage = events[-1].usage
        told = (usage.reasoning_effort, usage.thinking_budget_asked, usage.thinking_budget_applied)
        assert (*told, usage.longest_thought_tokens) == ("minimal", 256, 256, 256)
        bad = north.ChatRequest(messages=[north.Message(role="user", content="x")], reasoning_effort="hardest")
        with pytest.raises(grpc.aio.AioRpcError, match="use none, minimal, low, medium, high"):
            await rpc.ReasoningStub(channel).Chat(bad).read()


async def test_a_model_that_does_not_think_takes_no_effort_but_none(world_of: Any, says: Any) -> None:
    value = Plan.load("nano-tp1").model_dump()
    value["model"] |= {"reasoning": False}
    plan = Plan.model_validate(value)
    world = await world_of([plan])
    await world.worker(says("hello"), plan=plan)
    create = world.client.chat.completions.create
    assert (await create(model="r1-nano", messages=ASK, reasoning_effort="none")).choices[0].message.content == "hello"
    with pytest.raises(openai.BadRequestError, match="does not think") as fault:
        await create(model="r1-nano", messages=ASK, reasoning_effort="low")
    assert fault.value.param == "reasoning_effort"
