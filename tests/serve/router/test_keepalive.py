"""A process that hangs keeps its TCP connection: only HTTP/2 pings notice. Takes ten seconds."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import openai
import pytest

SILENT_WORKER = """
import sys, threading
import grpc
from r1_serve.protos import fleet_pb2, fleet_pb2_grpc
hello = fleet_pb2.Hello.FromString(bytes.fromhex(sys.argv[2]))
def messages():
    yield fleet_pb2.WorkerMessage(hello=hello)
    threading.Event().wait()
for message in fleet_pb2_grpc.FleetStub(grpc.insecure_channel(sys.argv[1])).Attach(messages()):
    print(message.WhichOneof("message"), flush=True)
"""


@pytest.mark.slow
async def test_a_worker_that_hangs_is_lost_within_seconds(world: Any, hello: Any) -> None:
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SILENT_WORKER, world.grpc, hello.SerializeToString().hex(), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert worker.stdout is not None
        assert await worker.stdout.readline() == b"welcome\n"
        asking = world.client.chat.completions.create(model="r1-nano", messages=[{"role": "user", "content": "x"}])
        request = asyncio.create_task(asking)
        assert await worker.stdout.readline() == b"submit\n"
        worker.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(15):
            with pytest.raises(openai.APIStatusError, match="the worker that held this request is gone"):
                await request
    finally:
        worker.kill()
        await worker.communicate()
