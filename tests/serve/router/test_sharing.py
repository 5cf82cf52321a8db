"""Several routers and one worker that is attached to all of them: quotas and load are shared, over real gRPC."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from r1_cluster.routing.quota import Report, Usage
from r1_cluster.routing.shares import Part, Want
from r1_cluster.routing.tenants import hash_key
from r1_cluster.routing.turns import Line
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.router.sharing import digest_of, lines_of, report_of
from r1_serve.workers.attachment import Attachments
from r1_serve.workers.generations import Generations, Outbox

TENANTS = """
tenants:
  - name: acme
    keys: [{key}]
    quota: {{{quota}}}
  - name: other
    keys: [{other}]
"""
ASK = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 60}


class Answering(Generations):
    """A rank whose engine answers each request at once, or holds it until :meth:`release`."""

    def __init__(self, answer: list[int], *, hold: bool = False) -> None:
        super().__init__()
        self._answer = answer
        self._hold = hold
        self.running: list[tuple[Outbox, int]] = []
        self.most = 0

    async def submit(self, outbox: Outbox, submit: pb.Submit) -> None:
        self.running.append((outbox, submit.request_id))
        self._held[outbox] += 1
        self.most = max(self.most, len(self.running))
        if not self._hold:
            self.release()

    def release(self) -> None:
        for outbox, number in self.running:
            delta = pb.Delta(request_id=number, token_ids=self._answer, finish=pb.FINISH_STOP)
            outbox.send(pb.Frame(deltas=[delta]))
            self._held[outbox] -= 1
        self.running = []

    def of_others(self, outbox: Outbox) -> int:
        return len(self.running) - self._held[outbox]


@asynccontextmanager
async def three(
    world_of: Callable[..., Awaitable[Any]], tmp_path: Path, generations: Generations, hello: pb.Hello, quota: str
) -> AsyncIterator[list[Any]]:
    """Three routers with a tenant that has a quota and one that has none, and a worker attached to each."""
    tenants = tmp_path / "tenants.yaml"
    tenants.write_text(TENANTS.format(key=hash_key("k"), other=hash_key("o"), quota=quota))
    worlds = [await world_of(tenants=tenants) for _ in range(3)]
    worker = Attachments(hello, generations, [world.grpc for world in worlds], resolve_interval_s=1.0)
    tasks = [asyncio.create_task(worker.run()), asyncio.create_task(generations.beat(0.02))]
    try:
        for world in worlds:
            await world.until(lambda world=world: world.router.service.ready)
        for world in worlds:
            await world.until(lambda world=world: all(rank.routers == 3 for rank in world.router.ranks))
        yield worlds
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await worker.leave()


async def ask(http: httpx.AsyncClient, world: Any, key: str = "k") -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return await http.post(f"{world.http}/v1/chat/completions", json=ASK, headers=headers, timeout=30)


async def test_three_routers_under_skewed_load_let_through_one_quota(
    world_of: Any, tmp_path: Path, hello: pb.Hello, ids: Any
) -> None:
    answer = ids("a</think>" + "b " * 20)
    per_minute = 12_000
    generations = Answering(answer)
    async with three(world_of, tmp_path, generations, hello, f"tokens_per_minute: {per_minute}") as worlds:
        used, refused = 0, 0
        skew = itertools.cycle([0] * 16 + [1] * 3 + [2])

        async def client(http: httpx.AsyncClient, until: float) -> None:
            nonlocal used, refused
            while time.monotonic() < until:
                response = await ask(http, worlds[next(skew)])
                if response.status_code == 200:
                    used += response.json()["usage"]["total_tokens"]
                else:
                    assert response.json()["error"]["code"] == "tenant_quota"
                    assert int(response.headers["retry-after"]) >= 1
                    refused += 1
                    await asyncio.sleep(0.02)

        async with httpx.AsyncClient() as http:
            begun = time.monotonic()
            await asyncio.gather(*(client(http, begun + 5) for _ in range(8)))
            seconds = time.monotonic() - begun
    exact = per_minute * (1 + seconds / 60)
    assert refused > 20
    assert used == pytest.approx(exact, rel=0.10)


async def test_one_router_may_run_what_the_others_do_not_need_and_no_more(
    world_of: Any, tmp_path: Path, hello: pb.Hello, ids: Any
) -> None:
    generations = Answering(ids("a</think>b"), hold=True)
    async with three(world_of, tmp_path, generations, hello, "max_running: 6") as worlds, httpx.AsyncClient() as http:
        asked = [asyncio.create_task(ask(http, worlds[0])) for _ in range(9)]
        await worlds[0].until(lambda: len(generations.running) == 6)
        asked += [asyncio.create_task(ask(http, worlds[i])) for i in (1, 2)]
        await worlds[1].until(lambda: worlds[1].router.service.desk.queued("r1-nano") == 1)
        while not all(task.done() for task in asked):
            generations.release()
            await asyncio.sleep(0.01)
        assert all(task.result().status_code == 200 for task in asked)
    assert generations.most == 6


async def test_a_rank_says_how_much_of_it_other_routers_use(
    world_of: Any, tmp_path: Path, hello: pb.Hello, ids: Any
) -> None:
    generations = Answering(ids("a</think>b"), hold=True)
    async with three(world_of, tmp_path, generations, hello, "max_running: 100") as worlds, httpx.AsyncClient() as http:
        asked = [asyncio.create_task(ask(http, worlds[i])) for i in (0, 0, 1)]
        await worlds[0].until(lambda: len(generations.running) == 3)
        ranks = [next(iter(world.router.ranks)) for world in worlds]
        for world, rank, others in zip(worlds, ranks, (1, 2, 3), strict=True):
            await world.until(lambda rank=rank, others=others: rank.others == others)
            assert rank.view().load == 3
        generations.release()
        await asyncio.gather(*asked)


async def test_a_seat_goes_to_whoever_is_due_and_not_to_the_router_that_had_it(
    world_of: Any, tmp_path: Path, hello: pb.Hello, ids: Any
) -> None:
    generations = Answering(ids("a</think>" + "b " * 20), hold=True)
    hello.capacity.max_num_seqs = 1
    async with three(world_of, tmp_path, generations, hello, "max_running: 100") as worlds, httpx.AsyncClient() as http:
        asked = [asyncio.create_task(ask(http, worlds[0])) for _ in range(12)]
        await worlds[0].until(lambda: generations.running)
        mine = generations.running[0][0]
        asked += [asyncio.create_task(ask(http, worlds[1], "o")) for _ in range(12)]
        await worlds[1].until(lambda: worlds[1].router.service.desk.queued("r1-nano") >= 11)
        started: list[bool] = []
        while len(started) < 12:
            await worlds[0].until(lambda: generations.running)
            started += [outbox is mine for outbox, _ in generations.running]
            await asyncio.sleep(0.1)  # or all is over before the routers have told each other
            generations.release()
        while not all(task.done() for task in asked):
            generations.release()
            await asyncio.sleep(0.01)
    assert 4 <= sum(started) <= 9


def test_a_report_survives_the_wire() -> None:
    part = Part(100.0, 40.5, 3.0, Want(1.0, 2.0, 3.0), {"b": 5.0}, {"c": 7.5})
    report = Report("a", 12.5, {"acme": Usage(part, Part(limit=4, owned=2, free=1), 9), "idle": Usage()})
    lines = {
        "r1": {"acme": Line(7.5, 9.25, 3, 1.5, -2, True), "idle": Line(1.0, 2.0)},
        "else": {"acme": Line(0.5, 0.0)},
    }
    assert report_of(digest_of(report, lines, 3)) == report
    assert lines_of(digest_of(report, lines, 3)) == lines
