"""A rank dies, errs, leaves or is out of order: the client sees a pause, and every token once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import openai
import pytest
from r1_cluster.plan import Plan
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.protos import reasoning_pb2 as north
from r1_serve.protos import reasoning_pb2_grpc as rpc
from r1_serve.router.generation import MAX_DEATHS, reseeded

ASK: list[Any] = [{"role": "user", "content": "x"}]
EOS = "<｜end▁of▁sentence｜>"
TEXT = f"2 + 2 = 4, naïve 😀 so.\n</think>\n\nIt is 4 😀.{EOS}"


def asking(world: Any, **fields: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(world.client.chat.completions.create(model="r1-nano", messages=ASK, **fields))


@pytest.fixture
def tokens(ids: Callable[[str], list[int]]) -> list[int]:
    return ids(TEXT)


async def lose(worker: Any, submit: pb.Submit, how: str) -> None:
    """``how`` a rank can be lost: its stream, its engine, or of its own will."""
    if how == "stream":
        await worker.die()
    elif how == "engine":
        await worker.send(pb.Delta(request_id=submit.request_id, finish=pb.FINISH_ERROR), draining=True)
    else:
        await worker.send(pb.Delta(request_id=submit.request_id, finish=pb.FINISH_ABORT), draining=True)


def summary(done: Any) -> tuple[Any, ...]:
    message, usage = done.choices[0].message, done.usage
    counts = usage.completion_tokens, usage.completion_tokens_details.reasoning_tokens, usage.prompt_tokens
    return message.reasoning, message.content, done.choices[0].finish_reason, *counts


@pytest.mark.parametrize("how", ["stream", "engine", "hand-over"])
async def test_cut_anywhere_a_generation_ends_as_if_nothing_had_happened(
    world_of: Any, tokens: list[int], how: str
) -> None:
    """At every token: in the thought, inside a character, on either side of ``</think>``, in the answer."""
    world = await world_of(resume_wait_s=60)
    outcomes = []
    for cut in range(len(tokens) + 1):
        worker = await world.worker()
        request = asking(world, max_tokens=100)
        submit = await worker.next_submit()
        await worker.send(pb.Delta(request_id=submit.request_id, token_ids=tokens[:cut]))
        await lose(worker, submit, how)
        other = await world.worker()
        if cut == len(tokens):  # its end is known from the last token, though nobody said so
            outcomes.append(summary(await request))
        else:
            again = await other.next_submit()
            assert list(again.prompt_token_ids) == [*submit.prompt_token_ids, *tokens[:cut]]
            assert again.sampling.max_tokens == 100 - cut
            last = pb.Delta(request_id=again.request_id, token_ids=tokens[cut:], finish=pb.FINISH_STOP)
            await other.send(last)
            outcomes.append(summary(await request))
        await worker.die()
        await other.die()
        await world.until(lambda: not list(world.router.ranks))
    thought, answer = "2 + 2 = 4, naïve 😀 so.", "It is 4 😀."
    assert {outcome[:4] for outcome in outcomes} == {(thought, answer, "stop", len(tokens))}
    assert len(set(outcomes)) == 1
    assert world.metric("r1_migrations_total", outcome="resumed") == len(tokens)


async def test_a_stream_pauses_and_goes_on_with_one_end(world: Any, ids: Any) -> None:
    workers = [await world.worker(), await world.worker()]
    request = asking(world, stream=True, stream_options={"include_usage": True})
    submit = await workers[0].next_submit()
    await workers[0].send(pb.Delta(request_id=submit.request_id, token_ids=ids("2 + 2")))
    stream = await request
    await workers[0].die()
    again = await workers[1].next_submit()
    rest = pb.Delta(request_id=again.request_id, token_ids=ids(" = 4</think>4"), finish=pb.FINISH_STOP)
    await workers[1].send(rest)
    chunks = [chunk async for chunk in stream]
    ends = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    text = "".join(chunk.choices[0].delta.model_dump().get("reasoning") or "" for chunk in chunks if chunk.choices)
    assert (text, ends) == ("2 + 2 = 4", ["stop"])
    assert chunks[-1].usage.completion_tokens == len(ids("2 + 2 = 4</think>4"))


async def test_over_grpc_it_is_the_same(world: Any, ids: Any) -> None:
    workers = [await world.worker(), await world.worker()]
    async with grpc.aio.insecure_channel(world.grpc) as channel:
        call = rpc.ReasoningStub(channel).Chat(north.ChatRequest(messages=[north.Message(role="user", content="x")]))
        submit = await workers[0].next_submit()
        await workers[0].send(pb.Delta(request_id=submit.request_id, token_ids=ids("2 + 2")))
        await workers[0].die()
        again = await workers[1].next_submit()
        last = pb.Delta(request_id=again.request_id, token_ids=ids("</think>4"), finish=pb.FINISH_STOP)
        await workers[1].send(last)
        events = [event async for event in call]
    assert [event.WhichOneof("event") for event in events].count("finished") == 1
    assert events[-1].usage.completion_tokens == len(ids("2 + 2</think>4"))


async def test_a_request_waits_for_its_gang_up_to_the_deadline(world_of: Any, ids: Any) -> None:
    world = await world_of(resume_wait_s=60)
    worker = await world.worker()
    request = asking(world, extra_headers={"X-Request-Timeout": "0.3"})
    await worker.next_submit()
    await worker.die()
    with pytest.raises(openai.APIStatusError) as fault:
        await request
    assert fault.value.code == "deadline_exceeded"
    other = await world.worker()
    assert other.submits.empty()
    await world.until(lambda: world.metric("r1_migrations_total", outcome="abandoned") == 1)


async def test_what_is_left_of_a_gang_is_not_sent_anything(world_of: Any, ids: Any) -> None:
    """Ranks of a gang step together: after one died the others hang until all are restarted."""
    plan = Plan.load("nano-dp2-ep2")
    world = await world_of([plan], resume_wait_s=60)
    first, second = [await world.worker(plan=plan, gang_id="old", rank=rank) for rank in range(2)]
    request = asking(world)
    submit = await first.next_submit()
    await lose(first, submit, "engine")
    await world.until(lambda: len(world.router.service.migrations))
    assert second.submits.empty()
    new = [await world.worker(plan=plan, gang_id="new", rank=rank) for rank in range(2)]
    again = await new[0].next_submit()
    last = pb.Delta(request_id=again.request_id, token_ids=ids("a</think>b"), finish=pb.FINISH_STOP)
    await new[0].send(last)
    assert (await request).choices[0].message.content == "b"


async def test_a_request_that_kills_two_ranks_at_its_start_is_not_tried_on_a_third(world: Any) -> None:
    workers = [await world.worker() for _ in range(3)]
    request = asking(world)
    for worker in workers[:2]:
        await worker.next_submit()
        await worker.die()
    with pytest.raises(openai.APIStatusError, match="workers died with this request") as fault:
        await request
    assert fault.value.code == "poison_request"
    assert workers[2].submits.empty()
    assert world.metric("r1_migrations_total", outcome="poison") == 1


async def test_what_kills_ranks_is_found_among_many_and_the_others_are_answered(world_of: Any, ids: Any) -> None:
    """Eight requests begin together on a rank and one of them kills it, and every rank it comes to."""
    world = await world_of(resume_wait_s=60)
    ranks = [await world.worker()]
    requests = [asking(world, max_tokens=99 if number == 5 else 100) for number in range(8)]
    for _ in requests:
        await ranks[0].next_submit()
    await ranks[0].die()

    async def serve(rank: Any) -> None:
        while (submit := await rank.submits.get()).sampling.max_tokens != 99:
            await rank.send(pb.Delta(request_id=submit.request_id, token_ids=ids("a</think>b"), finish=pb.FINISH_STOP))
        await rank.die()

    while not all(request.done() for request in requests):
        ranks.append(await world.worker())
        serving = asyncio.create_task(serve(ranks[-1]))
        await asyncio.wait([serving, asyncio.ensure_future(asyncio.wait(requests))], return_when="FIRST_COMPLETED")
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    outcomes = await asyncio.gather(*requests, return_exceptions=True)
    assert [number for number, outcome in enumerate(outcomes) if isinstance(outcome, Exception)] == [5]
    assert getattr(outcomes[5], "code", None) == "poison_request"
    assert len(ranks) <= 5


async def test_a_request_that_got_tokens_from_each_dead_rank_goes_on_but_not_for_ever(world: Any, ids: Any) -> None:
    workers = [await world.worker() for _ in range(MAX_DEATHS + 1)]
    request = asking(world)
    for number, worker in enumerate(workers[:-1]):
        submit = await worker.next_submit()
        await worker.send(pb.Delta(request_id=submit.request_id, token_ids=ids("a")))
        (call,) = world.router.service.calls
        await world.until(lambda n=number, c=call: c.generations[0].choice.completion_tokens == n + 1)
        await worker.die()
    with pytest.raises(openai.APIStatusError) as fault:
        await request
    assert fault.value.code == "poison_request"
    assert workers[-1].submits.empty()


async def test_a_request_that_waited_in_a_full_engine_is_not_blamed_for_its_death(world_of: Any, ids: Any) -> None:
    world = await world_of(resume_wait_s=60, policy="least_load")
    seats = pb.Capacity(kv_tokens=10_000, max_num_seqs=1, max_model_len=2048)
    for _ in range(3):
        worker = await world.worker(capacity=seats)
        if not world.router.service.calls:
            requests = [asking(world), asking(world)]
        submits = [await worker.next_submit() for _ in requests]
        await worker.send(pb.Delta(request_id=submits[0].request_id, token_ids=ids("a")))
        await world.until(lambda: any(c.generations[0].choice.completion_tokens for c in world.router.service.calls))
        await lose(worker, submits[0], "engine")
        await worker.die()
    await world.worker(lambda _: [pb.Delta(token_ids=ids("</think>b"), finish=pb.FINISH_STOP)])
    assert [(await request).choices[0].message.content for request in requests] == ["b", "b"]


async def test_an_engine_that_fails_one_request_and_lives_does_not_get_it_again(world: Any, ids: Any) -> None:
    workers = [await world.worker(), await world.worker()]
    request = asking(world)
    submit = await workers[0].next_submit()
    await workers[0].send(pb.Delta(request_id=submit.request_id, finish=pb.FINISH_ERROR, error="odd"))
    again = await workers[1].next_submit()
    last = pb.Delta(request_id=again.request_id, token_ids=ids("a</think>b"), finish=pb.FINISH_STOP)
    await workers[1].send(last)
    assert (await request).choices[0].message.content == "b"
    assert workers[0].submits.empty()


async def test_what_the_engine_refuses_is_not_tried_elsewhere(world: Any) -> None:
    workers = [await world.worker(), await world.worker()]
    request = asking(world)
    submit = await workers[0].next_submit()
    await workers[0].send(pb.Delta(request_id=submit.request_id, finish=pb.FINISH_REJECTED, error="no"))
    with pytest.raises(openai.BadRequestError):
        await request
    assert workers[1].submits.empty()


async def test_stop_strings_span_the_gap(world: Any, ids: Any) -> None:
    workers = [await world.worker(), await world.worker()]
    request = asking(world, stop=["123"])
    submit = await workers[0].next_submit()
    await workers[0].send(pb.Delta(request_id=submit.request_id, token_ids=ids("a</think>b12")))
    await workers[0].die()
    again = await workers[1].next_submit()
    await workers[1].send(pb.Delta(request_id=again.request_id, token_ids=ids("345")))
    assert (await request).choices[0].message.content == "b"
    assert await workers[1].next_abort() == again.request_id


async def test_only_the_choice_whose_rank_died_moves(world: Any, ids: Any) -> None:
    workers = [await world.worker(), await world.worker()]
    request = asking(world, n=2)
    first, second = [await worker.next_submit() for worker in workers]
    await workers[0].die()
    again = await workers[1].next_submit()
    for submit, text in ((second, "a</think>second"), (again, "a</think>first")):
        last = pb.Delta(request_id=submit.request_id, token_ids=ids(text), finish=pb.FINISH_STOP)
        await workers[1].send(last)
    assert [choice.message.content for choice in (await request).choices] == ["first", "second"]
    assert list(again.prompt_token_ids) == list(first.prompt_token_ids)


async def test_a_seed_is_moved_on_by_the_tokens_so_far_and_always_alike(world: Any, ids: Any) -> None:
    workers = [await world.worker(), await world.worker()]
    request = asking(world, seed=7, temperature=1)
    submit = await workers[0].next_submit()
    assert submit.sampling.seed == 7
    await workers[0].send(pb.Delta(request_id=submit.request_id, token_ids=ids("a b")))
    await workers[0].die()
    again = await workers[1].next_submit()
    assert again.sampling.seed == reseeded(7, len(ids("a b")))
    assert len({reseeded(seed, n) for seed in range(-9, 9) for n in range(1, 50)}) == 18 * 49
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)


@pytest.mark.parametrize("numbers", [(1, 3), (1, 1), (2,)])
async def test_a_worker_whose_frames_are_out_of_order_is_dropped_and_its_requests_go_on(
    world: Any, ids: Any, numbers: tuple[int, ...]
) -> None:
    workers = [await world.worker(), await world.worker()]
    request = asking(world)
    await workers[0].next_submit()
    for number in numbers:
        await workers[0].write(pb.WorkerMessage(frame=pb.Frame(sequence=number)))
    code, details = await workers[0].status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "frame" in details
    again = await workers[1].next_submit()
    last = pb.Delta(request_id=again.request_id, token_ids=ids("a</think>b"), finish=pb.FINISH_STOP)
    await workers[1].send(last)
    assert (await request).choices[0].message.content == "b"
