"""The fast way out: text from the frame's handler to the connection, with the client's pace still respected."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any, cast

import pytest
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.router.call import Call
from r1_serve.router.pace import LONGEST_S

ASK = [{"role": "user", "content": "x"}]


def post(**fields: Any) -> bytes:
    body = json.dumps({"messages": ASK, "stream": True, **fields}).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nhost: r\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


async def connect(world: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that a reader who pauses is felt soon
    made.setblocking(False)
    await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", world.router.http_port))
    return await asyncio.open_connection(sock=made)


async def events(reader: asyncio.StreamReader) -> list[dict[str, Any]]:
    """One chunked response's events, up to [DONE]; fails on broken chunk framing."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    data = bytearray()
    while size := int(await reader.readline(), 16):
        data += await reader.readexactly(size)
        assert await reader.readexactly(2) == b"\r\n"
    assert await reader.readexactly(2) == b"\r\n"
    blocks = [block.removeprefix(b"data: ") for block in bytes(data).split(b"\n\n") if block.startswith(b"data: ")]
    assert blocks[-1] == b"[DONE]"
    return [json.loads(block) for block in blocks[:-1]]


def text(found: list[dict[str, Any]]) -> str:
    deltas = [choice["delta"] for event in found for choice in event["choices"]]
    return "".join(delta.get("reasoning", "") + delta.get("content", "") for delta in deltas)


async def test_the_responses_task_does_not_wake_for_tokens(
    world: Any, ids: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    takes, take = 0, Call.take

    def counted(*args: Any, **more: Any) -> Any:
        nonlocal takes
        takes += 1
        return take(*args, **more)

    monkeypatch.setattr(Call, "take", counted)
    worker = await world.worker()
    reader, writer = await connect(world)
    writer.write(post())
    submit = await worker.next_submit()
    for _ in range(50):
        await worker.send(pb.Delta(request_id=submit.request_id, token_ids=ids("7")))
    await worker.send(pb.Delta(request_id=submit.request_id, token_ids=ids("</think>8"), finish=pb.FINISH_STOP))
    assert text(await events(reader)) == "7" * 50 + "8"
    assert takes <= 3  # for the first event, for the end, and none between
    writer.close()


async def test_a_client_that_does_not_read_is_written_no_more_than_its_buffer(world: Any, ids: Any) -> None:
    worker = await world.worker()
    reader, writer = await connect(world)
    transport = cast(asyncio.Transport, writer.transport)
    transport.pause_reading()
    writer.write(post(loop_guard=False))
    submit = await worker.next_submit()
    (call,) = world.router.service.calls
    await worker.send(pb.Delta(request_id=submit.request_id, token_ids=ids("9</think>")))
    part = ids("so " * 400)
    sent = 0
    while not call.waiting:  # until the kernel's buffers and the connection's own are full
        await worker.send(pb.Delta(request_id=submit.request_id, token_ids=part))
        sent += 1
        await asyncio.sleep(0)
        assert sent < 20_000
    for _ in range(200):
        await worker.send(pb.Delta(request_id=submit.request_id, token_ids=part))
    await worker.send(pb.Delta(request_id=submit.request_id, finish=pb.FINISH_STOP))
    await world.until(lambda: call.ended)
    assert len(call.waiting) <= 3
    transport.resume_reading()
    assert text(await events(reader)) == "9" + "so " * 400 * (sent + 200)
    writer.close()


async def test_pipelined_requests_are_answered_one_after_the_other_on_one_connection(world: Any, ids: Any) -> None:
    worker = await world.worker()
    reader, writer = await connect(world)
    writer.write(post() + post())
    for answer in ("one", "two"):
        submit = await worker.next_submit()
        for piece in ("a</think>", answer):
            await worker.send(pb.Delta(request_id=submit.request_id, token_ids=ids(piece)))
        await worker.send(pb.Delta(request_id=submit.request_id, finish=pb.FINISH_STOP))
        assert text(await events(reader)) == f"a{answer}"
    writer.close()


async def test_a_client_gone_between_two_tokens_ends_its_request_and_no_other(world: Any, ids: Any) -> None:
    worker = await world.worker()
    connections = [await connect(world) for _ in range(2)]
    submits = []
    for _, writer in connections:
        writer.write(post())
        submits.append(await worker.next_submit())
    await worker.send(*(pb.Delta(request_id=submit.request_id, token_ids=ids("a")) for submit in submits))
    connections[0][1].transport.abort()
    for _ in range(20):
        await worker.send(*(pb.Delta(request_id=submit.request_id, token_ids=ids("b")) for submit in submits))
    assert await worker.next_abort() == submits[0].request_id
    last = pb.Delta(request_id=submits[1].request_id, token_ids=ids("</think>c"), finish=pb.FINISH_STOP)
    await worker.send(last)
    assert text(await events(connections[1][0])) == "a" + "b" * 20 + "c"
    connections[1][1].close()


async def test_a_busy_loop_holds_text_back_and_writes_it_before_anything_else(world: Any, ids: Any) -> None:
    world.router.service.pace.interval_s = LONGEST_S
    worker = await world.worker()
    reader, writer = await connect(world)
    writer.write(post(stream_options={"include_usage": True}))
    submit = await worker.next_submit()
    for piece in ("a", *"b" * 30, "</think>", *"c" * 30):
        await worker.send(pb.Delta(request_id=submit.request_id, token_ids=ids(piece)))
    await worker.send(pb.Delta(request_id=submit.request_id, token_ids=ids("d"), finish=pb.FINISH_STOP))
    found = await events(reader)
    assert text(found) == "a" + "b" * 30 + "c" * 30 + "d"
    assert found[-1]["usage"]["completion_tokens"] == 63
    assert len(found) < 20
    writer.close()


async def test_text_held_back_goes_out_though_nothing_follows(world: Any, ids: Any) -> None:
    world.router.service.pace.interval_s = LONGEST_S
    worker = await world.worker()
    reader, writer = await connect(world)
    writer.write(post())
    submit = await worker.next_submit()
    for piece in "abc":
        await worker.send(pb.Delta(request_id=submit.request_id, token_ids=ids(piece)))
    async with asyncio.timeout(5):
        seen = b""
        while b'"reasoning":"c"' not in seen and b'"reasoning":"bc"' not in seen:
            seen += await reader.read(4096)
    writer.close()


async def test_text_held_back_for_a_client_that_leaves_harms_nobody(world: Any, ids: Any) -> None:
    world.router.service.pace.interval_s = LONGEST_S
    worker = await world.worker()
    (_, leaving), (reader, staying) = await connect(world), await connect(world)
    submits = []
    for writer in (leaving, staying):
        writer.write(post())
        submits.append(await worker.next_submit())
    for piece in "abc":
        await worker.send(*(pb.Delta(request_id=each.request_id, token_ids=ids(piece)) for each in submits))
    leaving.transport.abort()
    last = pb.Delta(request_id=submits[1].request_id, token_ids=ids("</think>d"), finish=pb.FINISH_STOP)
    assert await worker.next_abort() == submits[0].request_id
    await worker.send(last)
    assert text(await events(reader)) == "abcd"
    staying.close()


async def test_a_connection_that_the_kernel_cuts_as_unread_ends_its_request_as_stalled(world: Any) -> None:
    worker = await world.worker()
    _, writer = await connect(world)
    writer.write(post())
    submit = await worker.next_submit()
    (call,) = world.router.service.calls
    (protocol,) = world.router._http._limits.protocols
    protocol.connection_lost(TimeoutError("no acknowledgement"))
    assert await worker.next_abort() == submit.request_id
    assert call.error.reason == "client_stalled"
    assert world.metric("r1_http_connections_closed_total", why="stalled") == 1
    writer.close()


async def test_a_client_that_leaves_with_another_request_behind_the_first_ends_the_first(world: Any) -> None:
    worker = await world.worker()
    _, writer = await connect(world)
    writer.write(post() + post())
    submit = await worker.next_submit()
    writer.transport.abort()
    assert await worker.next_abort() == submit.request_id
