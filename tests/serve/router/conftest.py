"""A router in this process and a scripted worker that speaks the fleet protocol to it over real gRPC."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import openai
import pytest
from prometheus_client import CollectorRegistry
from r1_cluster.plan import Plan
from r1_serve.checkpoint import Checkpoint
from r1_serve.fleet_token import metadata
from r1_serve.protos import fleet_pb2, fleet_pb2_grpc
from r1_serve.router.server import Router
from r1_serve.settings import RouterSettings

PATIENCE_S = 10.0
PLAN = Plan.load("nano-tp1")

Script = Callable[[fleet_pb2.Submit], Sequence[fleet_pb2.Delta]]


def hello_of(plan: Plan, worker_id: str, **changes: Any) -> fleet_pb2.Hello:
    hello = fleet_pb2.Hello(
        protocol_version=2,
        worker_id=worker_id,
        plan_name=plan.name,
        plan_hash=plan.hash,
        model=plan.model.name,
        pool="main",
        gang_id=f"gang-of-{worker_id}",
        rank=0,
        gang_size=plan.pools[0].layout.data_parallel_size,
        capacity=fleet_pb2.Capacity(kv_tokens=10_000, max_num_seqs=plan.engine.max_num_seqs, max_model_len=2048),
    )
    hello.MergeFrom(fleet_pb2.Hello(**changes))
    for name in changes:
        if not changes[name]:
            hello.ClearField(name)
    return hello


class FakeWorker:
    """One rank. With a ``script`` it answers by itself; without, the test sends deltas.

    ``submits`` and ``aborts`` are queues of what the router asked for.
    """

    def __init__(self, port: int, hello: fleet_pb2.Hello, script: Script | None, token: str | None = None) -> None:
        self.hello = hello
        self.submits: asyncio.Queue[fleet_pb2.Submit] = asyncio.Queue()
        self.aborts: asyncio.Queue[int] = asyncio.Queue()
        self.demands: asyncio.Queue[fleet_pb2.Demand] = asyncio.Queue()
        self._script = script
        self._begun: set[int] = set()
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self._call = fleet_pb2_grpc.FleetStub(self._channel).Attach(metadata=metadata(token))
        self._task: asyncio.Task[None] | None = None

    async def attach(self) -> None:
        """Raises AioRpcError where the router refuses."""
        await self._call.write(fleet_pb2.WorkerMessage(hello=self.hello))
        first = await self._call.read()
        if first is grpc.aio.EOF:
            raise grpc.aio.AioRpcError(
                await self._call.code(),
                grpc.aio.Metadata(),
                await self._call.trailing_metadata(),
                await self._call.details(),
            )
        assert first.HasField("welcome")
        self._task = asyncio.create_task(self._listen())

    async def send(self, *deltas: fleet_pb2.Delta, load: fleet_pb2.Load | None = None, draining: bool = False) -> None:
        """One frame. As a real rank writes it: one token of a request that has begun and goes on is no delta."""
        frame = fleet_pb2.Frame(load=load, draining=draining)
        of = [delta.request_id for delta in deltas]
        for delta in deltas:
            steady = fleet_pb2.Delta(request_id=delta.request_id, token_ids=delta.token_ids)
            alone = len(delta.token_ids) == of.count(delta.request_id) == 1
            if alone and delta == steady and delta.request_id in self._begun:
                frame.steady_request_ids.append(delta.request_id)
                frame.steady_token_ids.append(delta.token_ids[0])
            else:
                frame.deltas.append(delta)
        self._begun.update(of)
        await self._call.write(fleet_pb2.WorkerMessage(frame=frame))

    async def write(self, message: fleet_pb2.WorkerMessage) -> None:
        await self._call.write(message)

    async def next_submit(self) -> fleet_pb2.Submit:
        return await asyncio.wait_for(self.submits.get(), PATIENCE_S)

    async def next_abort(self) -> int:
        return await asyncio.wait_for(self.aborts.get(), PATIENCE_S)

    async def status(self) -> tuple[grpc.StatusCode, str]:
        return await self._call.code(), await self._call.details()

    async def die(self) -> None:
        self._call.cancel()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        await self._channel.close()

    async def _listen(self) -> None:
        while (message := await self._call.read()) is not grpc.aio.EOF:
            if message.HasField("abort"):
                self.aborts.put_nowait(message.abort.request_id)
                continue
            if message.HasField("demand"):
                self.demands.put_nowait(message.demand)
                continue
            self.submits.put_nowait(message.submit)
            if self._script is not None:
                for delta in self._script(message.submit):
                    delta.request_id = message.submit.request_id
                    await self.send(delta)


class World:
    """The router under test and everything around it."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.http = f"http://127.0.0.1:{router.http_port}"
        self.grpc = f"127.0.0.1:{router.grpc_port}"
        self.client = openai.AsyncOpenAI(base_url=f"{self.http}/v1", api_key="none", max_retries=0)
        self.workers: list[FakeWorker] = []
        self._numbers = itertools.count()

    async def worker(
        self, script: Script | None = None, plan: Plan = PLAN, token: str | None = None, **hello: Any
    ) -> FakeWorker:
        worker_id = hello.pop("worker_id", f"w{next(self._numbers)}")
        worker = FakeWorker(self.router.grpc_port, hello_of(plan, worker_id, **hello), script, token)
        self.workers.append(worker)
        await worker.attach()
        return worker

    async def close(self) -> None:
        await self.client.close()
        for worker in self.workers:
            await worker.die()
        await self.router.stop()

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the loop run until ``condition`` holds: some states of the router have no event of their own."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.router.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
async def world_of() -> AsyncIterator[Callable[..., Awaitable[World]]]:
    """``await world_of(plans, **settings)``."""
    worlds: list[World] = []

    async def make(plans: Sequence[Plan] = (PLAN,), exporter: Any = None, **settings: Any) -> World:
        values = {"http_port": 0, "grpc_port": 0, "drain_s": 0.0, "worker_wait_s": 0.0, "resume_wait_s": 0.0} | settings
        router = Router(plans, RouterSettings(**values), CollectorRegistry(), exporter)
        await router.start()
        worlds.append(World(router))
        return worlds[-1]

    yield make
    for world in worlds:
        await world.close()


@pytest.fixture
async def world(world_of: Callable[..., Awaitable[World]]) -> World:
    return await world_of()


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    return Checkpoint.load(PLAN.model.checkpoint)


@pytest.fixture(scope="session")
def ids(checkpoint: Checkpoint) -> Callable[[str], list[int]]:
    """Token ids of a text in which control tokens are control tokens."""
    return lambda text: checkpoint.tokenizer.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="session")
def says(ids: Callable[[str], list[int]]) -> Callable[..., Script]:
    """A script that sends a text token by token, or ``per_frame`` at a time."""

    def make(text: str, *, finish: fleet_pb2.FinishReason = fleet_pb2.FINISH_STOP, per_frame: int = 1) -> Script:
        tokens = ids(text)
        cut = [tokens[i : i + per_frame] for i in range(0, len(tokens), per_frame)] or [[]]

        def script(submit: fleet_pb2.Submit) -> Sequence[fleet_pb2.Delta]:
            last = len(cut) - 1
            return [
                fleet_pb2.Delta(token_ids=part, finish=finish if i == last else fleet_pb2.FINISH_NONE)
                for i, part in enumerate(cut)
            ]

        return script

    return make


@pytest.fixture
def hello() -> fleet_pb2.Hello:
    return hello_of(PLAN, "w")
