"""The router as a process: ports, announcement, drain."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client import CollectorRegistry
from r1_cluster.plan import Plan
from r1_serve.errors import StartupError
from r1_serve.nano import weights_path
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.router.server import Router
from r1_serve.settings import RouterSettings

ASK: list[Any] = [{"role": "user", "content": "x"}]
PLAN = Plan.load("nano-tp1")
PROCESS = """
import sys
from pathlib import Path
from r1_cluster.plan import Plan
from r1_serve.router.server import serve
from r1_serve.settings import RouterSettings
serve([Plan.load("nano-tp1")], RouterSettings(http_port=0, grpc_port=0, announce=Path(sys.argv[1])))
print("ended", [m for m in ("torch", "vllm", "ray", "transformers") if m in sys.modules])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_router_announces_its_ports_and_ends_at_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    file = tmp_path / "router.json"
    command = [sys.executable, "-W", "error", "-c", PROCESS, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not file.exists():
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.02)
        said = json.loads(file.read_text())
        assert said["pid"] == process.pid
        assert httpx.get(f"http://127.0.0.1:{said['http_port']}/health").status_code == 200
        socket.create_connection(("127.0.0.1", said["grpc_port"])).close()
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out.strip()) == (0, "ended []")
    assert [line for line in err.splitlines() if " INFO " not in line] == []
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("door", ["http", "grpc"])
async def test_a_taken_port_is_named_with_what_to_do(door: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = RouterSettings(**{"http_port": 0, "grpc_port": 0, f"{door}_port": port})
        with pytest.raises(StartupError, match=f"cannot listen on 127.0.0.1:{port}: .*--{door}-port"):
            await Router([PLAN], settings, CollectorRegistry()).start()


def router(*plans: Plan, **settings: Any) -> Router:
    return Router(plans, RouterSettings(**settings), CollectorRegistry())


def changed(**model: Any) -> Plan:
    value = PLAN.model_dump()
    value["model"] |= model
    return Plan.model_validate(value)


def test_what_cannot_be_served_is_refused_at_start() -> None:
    with pytest.raises(StartupError, match="at least one plan"):
        router()
    with pytest.raises(StartupError, match="R1_POLICY: no routing policy 'best'"):
        router(PLAN, policy="best")
    with pytest.raises(StartupError, match="no checkpoint at /nowhere"):
        router(changed(checkpoint="/nowhere"))
    with pytest.raises(StartupError, match="deepseek-r1 names both r1-nano and other"):
        router(PLAN, changed(name="other"))
    with pytest.raises(StartupError, match="serve different checkpoints as r1-nano"):
        router(PLAN, changed(reasoning=False))


def test_a_plan_that_drafts_needs_a_checkpoint_that_can(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(weights_path(), folder)
    config = json.loads((folder / "config.json").read_text())
    del config["num_nextn_predict_layers"]
    (folder / "config.json").write_text(json.dumps(config))
    plan = Plan.load("nano-mtp")
    without = plan.model_copy(update={"model": plan.model.model_copy(update={"checkpoint": str(folder)})})
    with pytest.raises(StartupError, match=r"plan nano-mtp: .* has no layer that drafts .*: leave it out"):
        router(without)
    router(plan)
    (folder / "config.json").write_text((weights_path() / "config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({"min_p": 0.1}))
    with pytest.raises(StartupError, match=r"samples with min_p 0.1 .*: leave one of them out"):
        router(without)


async def test_a_stopping_router_finishes_what_runs_and_refuses_what_comes(world_of: Any, ids: Any) -> None:
    world = await world_of(drain_s=30)
    worker = await world.worker()
    async with httpx.AsyncClient(base_url=world.http) as http:
        running = asyncio.create_task(http.post("/v1/chat/completions", json={"messages": ASK}))
        submit = await worker.next_submit()
        stopping = asyncio.create_task(world.router.stop())
        await world.until(lambda: world.router.service.stopping)
        assert (await http.get("/ready")).status_code == 503
        refused = await http.post("/v1/chat/completions", json={"messages": ASK})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "router_stopping")
        delta = pb.Delta(request_id=submit.request_id, token_ids=ids("a</think>b"), finish=pb.FINISH_STOP)
        await worker.send(delta)
        assert (await running).json()["choices"][0]["message"]["content"] == "b"
    await stopping


async def test_what_still_runs_after_the_drain_ends_with_a_named_error(world: Any) -> None:
    worker = await world.worker()
    asking = asyncio.create_task(world.client.chat.completions.create(model="r1-nano", messages=ASK))
    await worker.next_submit()
    await world.router.stop()
    with pytest.raises(openai.APIStatusError) as fault:
        await asking
    assert fault.value.code == "router_stopping"


def test_a_model_that_does_not_reason_gives_answers_only() -> None:
    model = router(changed(reasoning=False)).catalog.resolve("r1-nano")
    assert not model.opens_thought
    assert model.vocabulary.think_end_id is None
