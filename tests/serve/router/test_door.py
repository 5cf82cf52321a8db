"""With a fleet token a router gives prompts to its own workers alone."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.protos import fleet_pb2_grpc as rpc
from r1_serve.router import command
from r1_serve.router.door import Door
from r1_serve.router.metrics import Metrics
from r1_serve.router.siblings import Member, Signpost
from r1_serve.settings import RouterSettings

TOKEN = "t" * 32
REFUSED = "r1_attach_refused_total"


async def test_the_fleets_own_worker_serves(world_of: Any, says: Any) -> None:
    world = await world_of(fleet_token=TOKEN)
    await world.worker(says("a</think>b"), token=TOKEN)
    answer = await world.client.chat.completions.create(model="r1-nano", messages=[{"role": "user", "content": "x"}])
    assert answer.choices[0].message.content == "b"
    assert world.metric(REFUSED, reason="fleet_token_wrong") == 0


@pytest.mark.parametrize("sent", [None, "o" * 32, TOKEN[:-1]])
async def test_a_stranger_is_told_what_to_do_and_is_counted(world_of: Any, sent: str | None) -> None:
    world = await world_of(fleet_token=TOKEN)
    with pytest.raises(grpc.aio.AioRpcError, match="the same R1_FLEET_TOKEN") as refused:
        await world.worker(token=sent)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert dict(refused.value.trailing_metadata())["r1-reason"] == "fleet_token_wrong"
    assert world.metric(REFUSED, reason="fleet_token_wrong") == 1
    assert not world.router.ranks.of("r1-nano")


async def test_a_stranger_is_refused_before_it_has_said_anything(world_of: Any) -> None:
    world = await world_of(fleet_token=TOKEN)
    async with grpc.aio.insecure_channel(world.grpc) as channel:
        call = rpc.FleetStub(channel).Attach()
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_another_refusal_is_counted_under_its_own_reason(world: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await world.worker(plan_hash="abc")
    assert world.metric(REFUSED, reason="attach_refused") == 1
    assert world.metric(REFUSED, reason="fleet_token_wrong") == 0


async def test_a_token_that_cannot_be_read_any_more_lets_nobody_in(world_of: Any, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN, encoding="utf-8")
    world = await world_of(fleet_token_file=file)
    await world.worker(token=TOKEN)
    file.unlink()
    with pytest.raises(grpc.aio.AioRpcError, match="cannot read its fleet token") as refused:
        await world.worker(token=TOKEN)
    assert str(file) not in refused.value.details()


async def test_of_several_processes_the_shared_port_tells_a_stranger_no_ports() -> None:
    from prometheus_client import CollectorRegistry

    server = grpc.aio.server()
    door = Door(lambda: TOKEN, Metrics(CollectorRegistry()))
    rpc.add_FleetServicer_to_server(Signpost(Member(0, (1, 2)), door), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stranger = rpc.FleetStub(channel).Attach()
            assert await stranger.code() is grpc.StatusCode.UNAUTHENTICATED
            own = rpc.FleetStub(channel).Attach(metadata=(("x-r1-fleet-token", TOKEN),))
            await own.write(pb.WorkerMessage(hello=pb.Hello()))
            assert list((await own.read()).welcome.ports) == [1, 2]
    finally:
        await server.stop(0)


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({"host": "0.0.0.0"}, True),
        ({"host": "::"}, True),
        ({"host": "router.example"}, True),
        ({"host": "127.0.0.1"}, False),
        ({"host": "::1"}, False),
        ({"host": "localhost"}, False),
        ({"host": "0.0.0.0", "fleet_token": TOKEN}, False),
    ],
)
def test_a_router_that_others_can_reach_without_a_token_says_so_once(
    settings: dict[str, Any], warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("r1_serve.logs.configure", lambda *_: None)
    monkeypatch.setattr("r1_serve.router.server.serve", lambda *_: None)
    with caplog.at_level(logging.WARNING):
        command.run(["nano-tp1"], RouterSettings(**settings))
        command.run(["nano-tp1"], RouterSettings(**settings), member='{"index": 0, "fleet_ports": [1]}')
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warned
    assert ("can attach as a worker" in caplog.text) is warned


def test_a_bad_token_is_one_line_before_anything_listens() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "r1_serve.cli", "router", "--plan", "nano-tp1"],
        env={"R1_FLEET_TOKEN": "short", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: R1_FLEET_TOKEN: a fleet token is")
