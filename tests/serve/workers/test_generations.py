"""Engine steps become frames: every token once, to the router that asked, one frame a step."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.workers.generations import ENGINE_DEAD, Generations
from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType, EngineCoreOutput, FinishReason
from vllm.v1.metrics.stats import PrefillStats


class Engine:
    """AsyncLLM's part: takes requests, remembers what was aborted, steps."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.priorities: dict[str, int] = {}
        self.traced: dict[str, Any] = {}
        self.aborted: list[str] = []
        self.produced: list[tuple[str, EngineCoreOutput]] = []

    async def add_request(
        self, request_id: str, prompt: Any, params: Any, *, priority: int, trace_headers: Any = None
    ) -> None:
        self.traced[request_id] = trace_headers
        if prompt["prompt_token_ids"] == [666]:
            raise ValueError("the prompt\nis too long")
        if prompt["prompt_token_ids"] == [999]:
            raise RuntimeError("no engine")
        self.taken.append(request_id)
        self.priorities[request_id] = priority

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def write(self, request_id: str, *tokens: int, finish: FinishReason | None = None, **more: Any) -> None:
        output = EngineCoreOutput(request_id=f"{request_id}-own", new_token_ids=list(tokens), finish_reason=finish)
        for field, value in more.items():
            setattr(output, field, value)
        self.produced.append((request_id, output))

    def step(self, generations: Generations, stats: Any) -> None:
        produced, self.produced = self.produced, []
        generations.step(produced, stats)


class Outbox:
    def __init__(self) -> None:
        self.frames: list[pb.Frame] = []

    def send(self, frame: pb.Frame) -> None:
        self.frames.append(frame)


def stats(running: int = 1, waiting: int = 0, kv: float = 0.0) -> Any:
    return SimpleNamespace(
        num_running_reqs=running,
        num_waiting_reqs=waiting,
        num_skipped_waiting_reqs=0,
        kv_cache_usage=kv,
        prefix_cache_stats=None,
        spec_decoding_stats=None,
    )


def submit(request_id: int, *prompt: int, **more: Any) -> pb.Submit:
    sampling = pb.Sampling(temperature=0, top_p=1, repetition_penalty=1, max_tokens=8)
    return pb.Submit(request_id=request_id, prompt_token_ids=prompt or (1, 2), sampling=sampling, **more)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def generations(engine: Engine) -> Generations:
    made = Generations()
    made.serve(engine)
    return made


@pytest.fixture
def router(generations: Generations) -> Outbox:
    outbox = Outbox()
    generations.open(outbox)
    return outbox


async def test_a_step_sends_one_frame_with_every_running_requests_tokens(
    generations: Generations, engine: Engine, router: Outbox
) -> None:
    await generations.submit(router, submit(7))
    await generations.submit(router, submit(8))
    engine.write("1", 10)
    engine.write("2", 20, 21)
    engine.step(generations, stats(2))
    [frame] = router.frames
    assert [(d.request_id, list(d.token_ids)) for d in frame.deltas] == [(7, [10]), (8, [20, 21])]
    assert frame.load.running == 2


async def test_a_step_without_tokens_sends_nothing(generations: Generations, engine: Engine, router: Outbox) -> None:
    await generations.submit(router, submit(7))
    engine.step(generations, stats())
    assert router.frames == []


async def test_each_router_gets_its_own_requests_only(generations: Generations, engine: Engine, router: Outbox) -> None:
    other = Outbox()
    generations.open(other)
    await generations.submit(router, submit(7))
    await generations.submit(other, submit(7))  # ids are a router's own
    engine.write("1", 10)
    engine.write("2", 20)
    engine.step(generations, stats(2))
    assert [list(d.token_ids) for d in router.frames[0].deltas] == [[10]]
    assert [list(d.token_ids) for d in other.frames[0].deltas] == [[20]]


@pytest.mark.parametrize(
    ("reason", "finish"), [(FinishReason.STOP, pb.FINISH_STOP), (FinishReason.LENGTH, pb.FINISH_LENGTH)]
)
async def test_the_last_tokens_and_the_end_come_together_once(
    generations: Generations, engine: Engine, router: Outbox, reason: FinishReason, finish: int
) -> None:
    await generations.submit(router, submit(7))
    engine.write("1", 10, finish=reason)
    engine.step(generations, stats())
    engine.step(generations, stats())
    [frame] = router.frames
    assert list(frame.deltas[0].token_ids) == [10]
    assert frame.deltas[0].finish == finish


async def test_one_token_of_a_request_that_goes_on_takes_no_message(
    generations: Generations, engine: Engine, router: Outbox
) -> None:
    await generations.submit(router, submit(7))
    await generations.submit(router, submit(8))
    for first, second in ((10, 20), (11, 21)):
        engine.write("1", first)
        engine.write("2", second)
        engine.step(generations, stats(2))
    engine.write("1", 12, 13)
    engine.write("2", 22, finish_reason=FinishReason.STOP)
    engine.step(generations, stats(1))
    begun, steady, last = router.frames
    assert [(d.request_id, list(d.token_ids)) for d in begun.deltas] == [(7, [10]), (8, [20])]
    assert (list(steady.steady_request_ids), list(steady.steady_token_ids), len(steady.deltas)) == ([7, 8], [11, 21], 0)
    assert [(d.request_id, list(d.token_ids)) for d in last.deltas] == [(7, [12, 13]), (8, [22])]
    assert not begun.steady_request_ids
    assert not last.steady_request_ids


async def test_the_first_delta_alone_tells_of_the_cache_and_the_queue(
    generations: Generations, engine: Engine, router: Outbox
) -> None:
    await generations.submit(router, submit(7))
    events = [EngineCoreEvent(EngineCoreEventType.QUEUED, 1.0), EngineCoreEvent(EngineCoreEventType.SCHEDULED, 1.5)]
    engine.write("1", 10, prefill_stats=PrefillStats(num_cached_tokens=3), events=events)
    engine.step(generations, stats())
    engine.write("1", 11, events=[EngineCoreEvent(EngineCoreEventType.PREEMPTED, 2.0), events[1]])
    engine.step(generations, stats())
    first, second = router.frames
    assert (first.deltas[0].cached_tokens, first.deltas[0].queue_time_us) == (3, 500_000)
    assert list(second.steady_token_ids) == [11]


async def test_an_aborted_request_is_stopped_and_heard_of_no_more(
    generations: Generations, engine: Engine, router: Outbox
) -> None:
    await generations.submit(router, submit(7))
    engine.write("1", 10)
    await generations.abort(router, 7)
    engine.step(generations, stats())
    await generations.abort(router, 7)
    assert engine.aborted == ["1"]
    assert router.frames == []


async def test_a_lost_router_takes_its_requests_along(generations: Generations, engine: Engine, router: Outbox) -> None:
    other = Outbox()
    generations.open(other)
    await generations.submit(router, submit(1))
    await generations.submit(other, submit(1))
    await generations.close(router)
    assert engine.aborted == ["1"]
    engine.write("2", 20)
    engine.step(generations, stats())
    assert len(other.frames) == 1


async def test_what_the_engine_refuses_ends_that_request_with_one_line(
    generations: Generations, engine: Engine, router: Outbox
) -> None:
    await generations.submit(router, submit(7, 666))
    [frame] = router.frames
    assert frame.deltas[0].finish == pb.FINISH_REJECTED
    assert frame.deltas[0].error == "the prompt is too long"


async def test_a_running_id_cannot_be_taken_twice(generations: Generations, engine: Engine, router: Outbox) -> None:
    await generations.submit(router, submit(7))
    await generations.submit(router, submit(7))
    assert router.frames[0].deltas[0].finish == pb.FINISH_REJECTED
    assert engine.taken == ["1"]


async def test_an_engine_in_trouble_is_an_error_to_try_elsewhere(generations: Generations, router: Outbox) -> None:
    await generations.submit(router, submit(7, 999))
    assert router.frames[0].deltas[0].finish == pb.FINISH_ERROR
    assert router.frames[0].deltas[0].error == ENGINE_DEAD


async def test_a_request_that_fails_in_a_step_does_not_disturb_the_others(
    generations: Generations, engine: Engine, router: Outbox
) -> None:
    await generations.submit(router, submit(7))
    await generations.submit(router, submit(8))
    engine.write("1", finish=FinishReason.ERROR)
    engine.write("2", 20)
    engine.step(generations, stats())
    failed, fine = router.frames[0].deltas
    assert (failed.finish, list(fine.token_ids)) == (pb.FINISH_ERROR, [20])


async def test_a_dead_engine_ends_every_request_and_takes_no_more(generations: Generations, router: Outbox) -> None:
    await generations.submit(router, submit(7))
    generations.fail()
    await generations.submit(router, submit(8))
    assert [(f.deltas[0].request_id, f.deltas[0].finish) for f in router.frames] == [
        (7, pb.FINISH_ERROR),
        (8, pb.FINISH_ERROR),
    ]


async def test_a_beat_tells_every_router_the_load_and_whether_the_rank_drains(
    generations: Generations, engine: Engine, router: Outbox
) -> None:
    generations.draining = True
    engine.step(generations, stats(running=3, waiting=2, kv=0.5))
    generations.announce()
    [frame] = router.frames
    assert frame.draining
    assert (frame.load.running, frame.load.waiting, frame.load.kv_usage) == (3, 2, 0.5)


async def test_priority_reaches_the_engine(generations: Generations, engine: Engine, router: Outbox) -> None:
    await generations.submit(router, submit(7, priority=-3))
    assert engine.priorities == {"1": -3}


@pytest.mark.parametrize("field", [{"temperature": -1}, {"top_p": 2}, {"max_tokens": 0}, {"repetition_penalty": 0}])
async def test_values_vllm_refuses_never_reach_the_engine(
    generations: Generations, engine: Engine, router: Outbox, field: dict[str, float]
) -> None:
    asked = {"temperature": 1, "top_p": 1, "repetition_penalty": 1, "max_tokens": 8} | field
    sampling = pb.Sampling(**asked)  # type: ignore[arg-type]
    await generations.submit(router, pb.Submit(request_id=7, prompt_token_ids=[1], sampling=sampling))
    [delta] = router.frames[0].deltas
    assert delta.finish == pb.FINISH_REJECTED
    assert next(iter(field)) in delta.error
    assert engine.taken == []


async def test_a_draining_rank_finishes_what_it_can_and_takes_nothing_new(
    generations: Generations, engine: Engine, router: Outbox
) -> None:
    await generations.submit(router, submit(7))
    draining = asyncio.create_task(generations.drain(60))
    await asyncio.sleep(0)
    assert router.frames[-1].draining
    await generations.submit(router, submit(8))
    assert [(d.request_id, d.finish) for d in router.frames[-1].deltas] == [(8, pb.FINISH_ABORT)]
    engine.write("1", 10, finish=FinishReason.STOP)
    engine.step(generations, stats())
    await draining
    assert [(d.request_id, d.finish) for d in router.frames[-1].deltas] == [(7, pb.FINISH_STOP)]
    assert engine.aborted == []


async def test_what_does_not_finish_in_the_grace_is_handed_over(
    generations: Generations, engine: Engine, router: Outbox
) -> None:
    await generations.submit(router, submit(7))
    await generations.submit(router, submit(8))
    await generations.drain(0)
    given = [(d.request_id, d.finish) for frame in router.frames for d in frame.deltas]
    assert given == [(7, pb.FINISH_ABORT), (8, pb.FINISH_ABORT)]
    assert all(frame.draining for frame in router.frames)
    assert engine.aborted == ["1", "2"]
    engine.write("1", 10)
    engine.step(generations, stats())
    assert [d.request_id for d in router.frames[-1].deltas] == [8]


async def test_an_idle_rank_drains_at_once(generations: Generations, router: Outbox) -> None:
    await generations.drain(60)
    assert router.frames[-1].draining


async def test_a_rank_whose_engine_died_tells_every_router_once_that_it_takes_no_more(
    generations: Generations, router: Outbox
) -> None:
    other = Outbox()
    generations.open(other)
    await generations.submit(router, submit(7))
    generations.fail()
    assert [frame.draining for outbox in (router, other) for frame in outbox.frames] == [True, True]
