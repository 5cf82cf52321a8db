"""A rank and its routers over real gRPC: it calls, it is welcomed, it works, it calls again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest
from r1_serve.errors import StartupError
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.protos import fleet_pb2_grpc as rpc
from r1_serve.workers.attachment import Attachments, resolve, targets
from r1_serve.workers.autoscaling import Demands
from r1_serve.workers.generations import Generations

HELLO = pb.Hello(protocol_version=2, worker_id="w", model="m")


class Router(rpc.FleetServicer):
    """Notes what workers say; sends what the test puts in ``commands``."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[pb.WorkerMessage] = asyncio.Queue()
        self.commands: asyncio.Queue[pb.RouterMessage | None] = asyncio.Queue()
        self.refuse: grpc.StatusCode | None = None
        self.tokens: list[str | None] = []

    async def Attach(self, messages: Any, context: Any) -> AsyncIterator[pb.RouterMessage]:
        self.tokens.append(dict(context.invocation_metadata()).get("x-r1-fleet-token"))
        if self.refuse:
            await context.abort(self.refuse, "unknown plan")
        reader = asyncio.create_task(self._read(messages))
        yield pb.RouterMessage(welcome=pb.Welcome(protocol_version=2, router_id="r"))
        while (command := await self.commands.get()) is not None:
            yield command
        reader.cancel()

    async def _read(self, messages: Any) -> None:
        async for message in messages:
            await self.said.put(message)
        await self.commands.put(None)

    async def hears(self) -> pb.WorkerMessage:
        return await asyncio.wait_for(self.said.get(), 10)


@asynccontextmanager
async def listening(router: Router) -> AsyncIterator[str]:
    server = grpc.aio.server()
    rpc.add_FleetServicer_to_server(router, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


class Calls(Generations):
    """Generations that only note what the stream asked of them."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: asyncio.Queue[tuple[str, int]] = asyncio.Queue()

    async def submit(self, outbox: Any, submit: pb.Submit) -> None:
        await self.asked.put(("submit", submit.request_id))

    async def abort(self, outbox: Any, request_id: int) -> None:
        await self.asked.put(("abort", request_id))


@asynccontextmanager
async def attached(generations: Generations, *routers: str, **more: Any) -> AsyncIterator[Attachments]:
    made = Attachments(HELLO, generations, routers, resolve_interval_s=0.05, **more)
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await made.leave()


async def test_the_first_message_says_who_calls_and_frames_follow() -> None:
    router, generations = Router(), Calls()
    async with listening(router) as address, attached(generations, address):
        assert (await router.hears()).hello == HELLO
        generations.announce()
        assert (await router.hears()).HasField("frame")
        await router.commands.put(None)


async def test_commands_arrive_in_order() -> None:
    router, generations = Router(), Calls()
    async with listening(router) as address, attached(generations, address):
        await router.hears()
        await router.commands.put(pb.RouterMessage(submit=pb.Submit(request_id=5)))
        await router.commands.put(pb.RouterMessage(abort=pb.Abort(request_id=5)))
        assert await asyncio.wait_for(generations.asked.get(), 10) == ("submit", 5)
        assert await asyncio.wait_for(generations.asked.get(), 10) == ("abort", 5)
        await router.commands.put(None)


async def test_what_a_router_says_is_asked_of_the_fleet_is_kept_for_serve() -> None:
    router, generations, demands = Router(), Calls(), Demands()
    async with listening(router) as address, attached(generations, address, demands=demands):
        await router.hears()
        await router.commands.put(pb.RouterMessage(demand=pb.Demand(queued=3, pressure=0.5)))
        await router.commands.put(pb.RouterMessage(abort=pb.Abort(request_id=1)))
        await asyncio.wait_for(generations.asked.get(), 10)
        assert demands.stats() == {"queued": 3, "wait_s": 0, "pressure": 0.5, "slo_burn": 0}
        await router.commands.put(None)


async def test_a_stream_that_ends_is_opened_again() -> None:
    router = Router()
    async with listening(router) as address, attached(Calls(), address):
        await router.hears()
        await router.commands.put(None)
        assert (await router.hears()).hello == HELLO
        await router.commands.put(None)


async def test_a_refused_rank_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r1_serve.workers.attachment.RETRY_S", 0.01)
    router = Router()
    router.refuse = grpc.StatusCode.FAILED_PRECONDITION
    async with listening(router) as address, attached(Calls(), address):
        await asyncio.sleep(0)
        router.refuse = None
        assert (await router.hears()).hello == HELLO
        await router.commands.put(None)


async def test_the_token_goes_with_each_call_as_it_is_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r1_serve.workers.attachment.RETRY_S", 0.01)
    router, tokens = Router(), ["old", "new"]
    async with listening(router) as address, attached(Calls(), address, token=lambda: tokens.pop(0)):
        await router.hears()
        await router.commands.put(None)
        await router.hears()
        assert router.tokens == ["old", "new"]
        await router.commands.put(None)


async def test_a_rank_whose_token_is_not_taken_says_so_once_and_asks_ever_less_often(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("r1_serve.workers.attachment.RETRY_S", 0.001)
    monkeypatch.setattr("r1_serve.workers.attachment.MAX_RETRY_S", 0.005)
    router = Router()
    router.refuse = grpc.StatusCode.UNAUTHENTICATED
    real = asyncio.sleep

    async def sleep(pause: float) -> None:
        if pause < 0.05:  # the resolver's own interval
            pauses.append(pause)
        if len(pauses) == 5:
            router.refuse = None
        await real(pause)

    monkeypatch.setattr("r1_serve.workers.attachment.asyncio.sleep", sleep)
    async with listening(router) as address, attached(Calls(), address):
        assert (await router.hears()).hello == HELLO
        await router.commands.put(None)
    assert pauses[:5] == [0.001, 0.002, 0.004, 0.005, 0.005]
    assert caplog.text.count("UNAUTHENTICATED") == 1


async def test_a_token_that_cannot_be_read_now_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("r1_serve.workers.attachment.RETRY_S", 0.001)
    router, missing = Router(), [True, True]

    def token() -> str | None:
        if missing:
            missing.pop()
            raise StartupError("R1_FLEET_TOKEN_FILE: cannot read it")
        return "t"

    async with listening(router) as address, attached(Calls(), address, token=token):
        await router.hears()
        assert router.tokens == ["t"]
        await router.commands.put(None)
    assert caplog.text.count("cannot read it") == 1


async def test_every_address_behind_a_name_gets_a_stream_and_new_ones_too() -> None:
    first, second = Router(), Router()
    async with listening(first) as one, listening(second) as two:
        found = {one}

        async def resolver(target: str) -> set[str]:
            return set(found)

        async with attached(Calls(), "routers:8001", resolver=resolver):
            await first.hears()
            found.add(two)
            await second.hears()
            await first.commands.put(None)
            await second.commands.put(None)


async def test_leaving_closes_the_streams_after_their_last_frame() -> None:
    router, generations = Router(), Calls()
    async with listening(router) as address:
        async with attached(generations, address):
            await router.hears()
            generations.draining = True
            generations.announce()
        assert (await router.hears()).frame.draining


async def test_an_unknown_name_resolves_to_nothing() -> None:
    assert await resolve("no-such-host.invalid:1") == set()


async def test_localhost_resolves_to_itself() -> None:
    assert "127.0.0.1:8001" in await resolve("127.0.0.1:8001")


@pytest.mark.parametrize("bad", ["", "host", "host:", "host:http", ":8001", "host:0", "host:70000", "a:1,b"])
def test_a_malformed_router_address_is_named(bad: str) -> None:
    with pytest.raises(ValueError, match="router"):
        targets(bad)


def test_routers_are_separated_by_commas() -> None:
    assert targets("a:1, b:2,") == ("a:1", "b:2")
