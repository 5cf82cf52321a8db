"""Clients and workers that misbehave, over real sockets: each gets a named end, and the others do not notice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from r1_cluster.plan import Plan
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.protos import reasoning_pb2 as north
from r1_serve.protos import reasoning_pb2_grpc as rpc

ASK = {"messages": [{"role": "user", "content": "x"}]}
FLOOD = 300  # words a frame


@contextlib.asynccontextmanager
async def connection(world: Any, receive_buffer: int | None = None) -> AsyncIterator[Any]:
    made = socket.socket()
    if receive_buffer:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    made.setblocking(False)
    await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", world.router.http_port))
    reader, writer = await asyncio.open_connection(sock=made, limit=1024 if receive_buffer else 1 << 16)
    try:
        yield reader, writer
    finally:
        writer.close()


def head(**fields: Any) -> bytes:
    body = json.dumps(ASK | fields).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nhost: r\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


async def others_are_served(world: Any, worker: Any, ids: Any) -> None:
    """A request beside the abuse goes through."""
    asking = asyncio.create_task(world.client.chat.completions.create(model="r1-nano", messages=ASK["messages"]))
    submit = await worker.next_submit()
    await worker.send(pb.Delta(request_id=submit.request_id, token_ids=ids("a</think>b"), finish=pb.FINISH_STOP))
    assert (await asking).choices[0].message.content == "b"


async def flooding(worker: Any, request_id: int, ids: Any) -> None:
    """Sends more text than any buffer of a connection holds, until the router has it stopped."""
    await worker.send(pb.Delta(request_id=request_id, token_ids=ids("</think>")))
    text = ids("so ") * FLOOD
    while worker.aborts.empty():
        await worker.send(pb.Delta(request_id=request_id, token_ids=text))


async def test_a_stream_that_nobody_reads_is_cut_and_its_request_ends(world_of: Any, ids: Any) -> None:
    world = await world_of(stall_s=0.3)
    worker = await world.worker()
    async with connection(world, receive_buffer=2048) as (_, writer):
        writer.write(head(stream=True, loop_guard=False))
        submit = await worker.next_submit()
        call = next(iter(world.router.service.calls))
        await asyncio.wait_for(flooding(worker, submit.request_id, ids), 30)
        assert await worker.next_abort() == submit.request_id
        assert call.error.reason == "client_stalled"
        assert len(call.waiting) <= 3  # merged, whatever came
        await others_are_served(world, worker, ids)
    assert world.metric("r1_http_connections_closed_total", why="stalled") == 1
    assert world.metric("r1_requests_total", model="r1-nano", outcome="client_stalled") == 1


async def test_a_grpc_stream_that_nobody_reads_ends_too(world_of: Any, ids: Any) -> None:
    world = await world_of(stall_s=0.3)
    worker = await world.worker()
    narrow = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]
    async with grpc.aio.insecure_channel(world.grpc, options=narrow) as channel:
        request = north.ChatRequest(messages=[north.Message(role="user", content="x")], loop_guard=False)
        call = rpc.ReasoningStub(channel).Chat(request)
        submit = await worker.next_submit()
        await asyncio.wait_for(flooding(worker, submit.request_id, ids), 30)
        assert await worker.next_abort() == submit.request_id
        await others_are_served(world, worker, ids)
        call.cancel()
    assert world.metric("r1_requests_total", model="r1-nano", outcome="client_stalled") == 1


@pytest.mark.parametrize("text", ["word " * 800_000, "a" * 4_000_000, "<" * 4_000_000, "é" * 1_900_000])
async def test_a_million_token_prompt_is_refused_soon_and_the_loop_goes_on(world: Any, ids: Any, text: str) -> None:
    worker = await world.worker()
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - before)

    watching = asyncio.create_task(watch())
    async with httpx.AsyncClient(base_url=world.http, timeout=60) as http:
        body = json.dumps({"messages": [{"role": "user", "content": text}]}, ensure_ascii=False).encode()
        sent = time.perf_counter()
        response = await http.post("/v1/chat/completions", content=body)
        seconds = time.perf_counter() - sent
    watching.cancel()
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert seconds < 5
    assert longest < 1  # the client in this loop writes four megabytes, and this machine may be busy
    await others_are_served(world, worker, ids)


async def test_idle_connections_are_closed_and_before_that_give_way(world_of: Any, ids: Any) -> None:
    world = await world_of(idle_s=0.5, max_connections=20)
    worker = await world.worker()
    async with contextlib.AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(connection(world)) for _ in range(20)]
        await others_are_served(world, worker, ids)
        assert await asyncio.wait_for(idle[0][0].read(), 10) == b""
        assert world.metric("r1_http_connections_closed_total", why="idle") == 1
        idle[1][1].write(b"POST /v1/chat/completions HTTP/1.1\r\nx: ")  # a head that is never done
        for reader, _ in idle:
            assert await asyncio.wait_for(reader.read(), 10) == b""
    await world.until(lambda: world.metric("r1_http_connections") == 0)
    await others_are_served(world, worker, ids)


async def test_where_all_connections_are_busy_one_more_is_refused(world_of: Any, ids: Any) -> None:
    world = await world_of(max_connections=2)
    worker = await world.worker()
    async with contextlib.AsyncExitStack() as stack:
        busy = [await stack.enter_async_context(connection(world)) for _ in range(2)]
        for _, writer in busy:
            writer.write(head())
        submits = [await worker.next_submit() for _ in busy]
        reader, _ = await stack.enter_async_context(connection(world))
        refused = await asyncio.wait_for(reader.read(), 10)
        assert b" 503 " in refused.splitlines()[0]
        assert json.loads(refused.split(b"\r\n\r\n")[1])["error"]["code"] == "too_many_connections"
        for submit in submits:
            delta = pb.Delta(request_id=submit.request_id, token_ids=ids("a</think>b"), finish=pb.FINISH_STOP)
            await worker.send(delta)
        for reader, _ in busy:
            assert b" 200 " in await asyncio.wait_for(reader.readline(), 10)
    assert world.metric("r1_http_connections_closed_total", why="too_many") == 1


async def test_a_connection_that_works_is_not_idle(world_of: Any, ids: Any) -> None:
    world = await world_of(idle_s=0.2)
    worker = await world.worker()
    async with connection(world) as (reader, writer):
        for _ in range(2):  # the second time on a connection that was answered before
            writer.write(head())
            submit = await worker.next_submit()
            await asyncio.sleep(0.4)  # the time itself is what is tried
            delta = pb.Delta(request_id=submit.request_id, token_ids=ids("a</think>b"), finish=pb.FINISH_STOP)
            await worker.send(delta)
            said = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            assert b" 200 " in said.splitlines()[0]
            length = next(line for line in said.lower().splitlines() if line.startswith(b"content-length"))
            await reader.readexactly(int(length.split(b":")[1]))


async def test_a_body_that_never_comes_is_given_up(world_of: Any) -> None:
    world = await world_of(idle_s=0.1)
    async with connection(world) as (reader, writer):
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: r\r\ncontent-length: 100\r\n\r\n{")
        said = await asyncio.wait_for(reader.readuntil(b"}}"), 10)
    assert b" 408 " in said.splitlines()[0]
    assert b"body_timeout" in said


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        ([pb.Frame(steady_request_ids=[1, 2], steady_token_ids=[1])], "differ in number"),
        ([pb.Frame(sequence=2)], "frame 2 came where 1 was due"),
        ([pb.Frame(sequence=1), pb.Frame(sequence=1)], "frame 1 came where 2 was due"),
        ([pb.Frame(load=pb.Load(kv_usage=math.nan))], "KV usage of nan"),
        ([pb.Frame(load=pb.Load(kv_usage=-3))], "KV usage of -3"),
    ],
)
async def test_a_worker_that_breaks_the_protocol_is_cut_off_and_the_others_work_on(
    world: Any, ids: Any, frames: list[pb.Frame], said: str
) -> None:
    good, bad = await world.worker(), await world.worker()
    for frame in frames:
        await bad.write(pb.WorkerMessage(frame=frame))
    code, details = await bad.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert said in details
    await world.until(lambda: len(world.router.ranks.of("r1-nano")) == 1)
    await others_are_served(world, good, ids)


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ({"capacity": pb.Capacity(kv_tokens=10, max_num_seqs=65, max_model_len=2048)}, "claims 65 seats"),
        ({"capacity": pb.Capacity(kv_tokens=10, max_num_seqs=64, max_model_len=1 << 20)}, "a context of 1048576"),
        ({"gang_id": "taken"}, "rank 0 of gang 'taken' has a stream here"),
        ({"gang_id": "mixed", "rank": 1}, "with another plan or pool"),
    ],
)
async def test_a_worker_that_lies_about_itself_does_not_get_in(
    world_of: Any, ids: Any, lie: dict[str, Any], said: str
) -> None:
    plan, gang = Plan.load("nano-tp1"), Plan.load("nano-dp2-ep2")
    world = await world_of([plan, gang])
    good = await world.worker(gang_id="taken")
    await world.worker(gang_id="mixed")
    liar = gang if lie.get("gang_id") == "mixed" else plan
    with pytest.raises(grpc.aio.AioRpcError, match=said):
        await world.worker(plan=liar, worker_id="liar", **lie)
    await asyncio.gather(*(worker.die() for worker in world.workers[1:]))
    await world.until(lambda: len(world.router.ranks.of("r1-nano")) == 1)
    await others_are_served(world, good, ids)
