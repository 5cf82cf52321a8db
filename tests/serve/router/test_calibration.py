"""What a calibration reads off a router, and how it cuts its answers off."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from r1_cluster.routing.tenants import hash_key
from r1_serve.calibration.router import CalibrationFailed, KeyRefused, NothingToMeasure, Router, Unreachable
from r1_serve.protos import fleet_pb2 as pb


def client(world: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=world.http, trust_env=False, timeout=10)


async def test_ranks_and_what_runs_are_counted(world: Any) -> None:
    worker = await world.worker()
    async with client(world) as http:
        found = await Router(http, None).fleet()
        assert (found.model, found.plan, found.gangs, found.ranks) == ("r1-nano", "nano-tp1", 1, 1)
        assert (found.max_model_len, found.seats, found.kv_tokens) == (2048, 64, 10_000)
        await worker.send(load=pb.Load(running=3, waiting=2))
        await world.until(lambda: next(iter(world.router.service.ranks)).load.running == 3)
        found = await Router(http, "r1-nano").fleet()
        assert (found.running, found.waiting) == (3, 2)
        assert not await Router(http, None).idle(within_s=0.0)


async def test_a_router_without_ranks_or_of_another_model_is_said(world: Any) -> None:
    async with client(world) as http:
        with pytest.raises(NothingToMeasure, match="no rank of r1-nano is attached"):
            await Router(http, None).fleet()
        with pytest.raises(NothingToMeasure, match=r"serves r1-nano, .* not r2: give one of these"):
            await Router(http, "r2").fleet()


async def test_nothing_that_listens_is_said() -> None:
    async with httpx.AsyncClient(base_url="http://127.0.0.1:9", trust_env=False) as http:
        with pytest.raises(Unreachable, match=r"no router answers at http://127.0.0.1:9 .*: start it"):
            await Router(http, None).fleet()


async def test_answers_are_kept_going_timed_and_cut_off(world: Any, ids: Any) -> None:
    worker = await world.worker()
    token = ids("7")[0]

    async def steps() -> None:
        """A token of each request every few milliseconds."""
        running: list[pb.Submit] = []
        while True:
            while not worker.submits.empty() or len(running) < 3:
                running.append(await worker.submits.get())
            await worker.send(*(pb.Delta(request_id=each.request_id, token_ids=[token]) for each in running))
            await asyncio.sleep(0.005)

    stepping = asyncio.create_task(steps())
    async with client(world) as http:
        streams = await Router(http, None).together(["1 2", "3 4", "5 6"], max_tokens=500, seconds=0.1, tokens=10)
        assert [len(stream.times) >= 10 for stream in streams] == [True] * 3
        assert all(stream.times == sorted(stream.times) for stream in streams)
        await asyncio.gather(*(worker.next_abort() for _ in streams))
    stepping.cancel()


async def test_every_answer_asks_to_go_on_to_its_end(world: Any, says: Any) -> None:
    worker = await world.worker(says("ab", finish=pb.FINISH_LENGTH))
    async with client(world) as http:
        assert await Router(http, None).first_token("1 2 3") > 0
    sampling = (await worker.next_submit()).sampling
    assert sampling.ignore_eos
    assert (sampling.max_tokens, list(sampling.stop_token_ids)) == (8, [])


async def test_what_the_router_refuses_is_told_in_its_words(world: Any) -> None:
    await world.worker()
    async with client(world) as http:
        with pytest.raises(CalibrationFailed, match=r"the router refuses /v1/chat/completions: .*max_tokens"):
            await Router(http, None).together(["1"], max_tokens=100_000, seconds=0.1, tokens=1)


async def test_a_key_of_no_tenant_is_refused_by_name(world_of: Any, tmp_path: Path) -> None:
    tenants = tmp_path / "tenants.yaml"
    tenants.write_text(f"tenants: [{{name: mine, keys: [{hash_key('right')}]}}]", encoding="utf-8")
    world = await world_of(tenants=tenants)
    await world.worker()
    async with client(world) as http:
        with pytest.raises(KeyRefused, match="give --key, or R1_API_KEY"):
            await Router(http, None).prompt_tokens("1")
