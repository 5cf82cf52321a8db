"""Five hundred streams over ranks that die one after the other, at whatever token each stream has reached."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from r1_cluster.plan import Plan
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.router.call import Call, Finished
from r1_serve.router.choice import Kind
from r1_serve.router.request import ChatRequest, Message

STREAMS = 500
KILLS = 6
EOS = "<｜end▁of▁sentence｜>"


class Model:
    """A deterministic engine: what follows a prompt is decided by it alone, however much of it is resubmitted."""

    def __init__(self, ids: Callable[[str], list[int]]) -> None:
        self._ids = ids
        (self._think,) = ids("<think>")
        self._newline = len(ids("\n"))

    def rest(self, submit: pb.Submit) -> list[int]:
        prompt = list(submit.prompt_token_ids)
        begin = prompt.index(self._think) + 1 + self._newline
        whole, so_far = self._ids(self.text(sum(prompt[:begin]))), prompt[begin:]
        assert whole[: len(so_far)] == so_far, "what was resubmitted is not what was sent"
        return whole[len(so_far) :]

    @staticmethod
    def text(seed: int) -> str:
        rng = random.Random(seed)
        thought = " ".join(str(rng.randrange(1000)) for _ in range(rng.randrange(1, 12)))
        return f"{thought} 😀\n</think>\n\nIt is {rng.randrange(10**6)} 😀.{EOS}"


async def work(worker: Any, model: Model, rng: random.Random) -> None:
    """Answer all submits in steps; each step gives every running request one to three tokens."""
    running: dict[int, list[int]] = {}
    while True:
        if not running:
            submit = await worker.submits.get()
            running[submit.request_id] = model.rest(submit)
        while not worker.submits.empty():
            submit = worker.submits.get_nowait()
            running[submit.request_id] = model.rest(submit)
        deltas = []
        for request_id, rest in list(running.items()):
            part = rest[: rng.randrange(1, 4)]
            running[request_id] = rest[len(part) :]
            finish = pb.FINISH_NONE if running[request_id] else pb.FINISH_STOP
            if finish:
                del running[request_id]
            deltas.append(pb.Delta(request_id=request_id, token_ids=part, finish=finish))
        await worker.send(*deltas)


async def read(call: Call) -> tuple[str, str, int]:
    """Thinking, answer and the number of ends."""
    texts, ends = {Kind.THINKING: "", Kind.ANSWER: ""}, 0
    while events := await call.take():
        for event in events:
            if isinstance(event, Finished):
                ends += 1
            else:
                texts[event.kind] += event.text
    return texts[Kind.THINKING], texts[Kind.ANSWER], ends


async def test_none_of_500_streams_loses_or_repeats_a_token_while_ranks_die(world_of: Any, ids: Any) -> None:
    value = Plan.load("nano-tp1").model_dump()
    value["engine"] |= {"max_num_seqs": STREAMS}
    plan = Plan.model_validate(value)
    world, model, rng = await world_of([plan], resume_wait_s=60), Model(ids), random.Random(7)

    async def rank() -> tuple[Any, asyncio.Task[None]]:
        capacity = pb.Capacity(kv_tokens=1 << 20, max_num_seqs=STREAMS, max_model_len=2048)
        worker = await world.worker(plan=plan, capacity=capacity)
        return worker, asyncio.create_task(work(worker, model, random.Random(rng.random())))

    ranks = [await rank(), await rank()]
    calls = [
        await world.router.service.open(ChatRequest("r1-nano", (Message("user", f"question {n}"),)), f"r{n}")
        for n in range(STREAMS)
    ]
    reading = [asyncio.create_task(read(call)) for call in calls]

    def tokens() -> int:
        return sum(call.generations[0].choice.completion_tokens for call in calls)

    for kill in range(KILLS):
        # Not before all go on after the last one: what dies alone on a rank twice is taken for the cause.
        due = STREAMS * 2 * (kill + 1)
        await world.until(lambda due=due: tokens() >= due and not world.router.service.migrations)
        worker, task = ranks.pop(0)
        if kill % 2:
            await worker.die()
            task.cancel()
        else:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await worker.die()
        ranks.append(await rank())
    done = await asyncio.gather(*reading)
    for call, (thinking, answer, ends) in zip(calls, done, strict=True):
        prompt = call.generations[0]._prompt
        text = model.text(sum(prompt))
        assert (thinking, answer, ends) == (*text.removesuffix(EOS).split("\n</think>\n\n"), 1)
        usage = call.usage()
        assert usage.completion_tokens == len(ids(text))
        assert usage.reasoning_tokens == len(ids(text.split("</think>")[0]))
    assert (world.metric("r1_migrations_total", outcome="resumed") or 0) > STREAMS / 2
    for _, task in ranks:
        task.cancel()
