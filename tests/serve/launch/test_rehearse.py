"""The launcher with stub children: what it prints, how it ends, and that nothing of it stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

LAUNCHER = Path(__file__).parent / "stubs" / "launcher.py"


class Launched:
    """A launcher process, its output in files, and every process it ever had below it."""

    def __init__(self, folder: Path, router: str, fleet: str, question: str) -> None:
        self.folder, self._out, self._err = folder, folder / "out", folder / "err"
        self._seen: set[psutil.Process] = set()
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, str(LAUNCHER), str(folder), router, fleet, question],
                stdout=out,
                stderr=err,
                cwd=folder,
            )

    @property
    def out(self) -> str:
        return self._out.read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        return self._err.read_text(encoding="utf-8")

    def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not done():
            assert time.monotonic() < deadline, self.out + self.err
            assert self.process.poll() is None, self.out + self.err
            self._seen.update(psutil.Process(self.process.pid).children(recursive=True))
            time.sleep(0.02)

    def end(self) -> int:
        code = self.process.wait(timeout=30)
        left = [p for p in self._seen if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        assert left == []
        names = [name for file in self.folder.glob("segment-*") for name in file.read_text().splitlines()]
        segments = [Path("/dev/shm", name) for name in names]
        assert [segment for segment in segments if segment.exists()] == []
        return code


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    launched: list[Launched] = []

    def start(router: str = "good", fleet: str = "good", question: str = "") -> Launched:
        (tmp_path / "ray").mkdir()
        launched.append(Launched(tmp_path, router, fleet, question))
        return launched[-1]

    yield start
    for one in launched:
        one.process.kill()
        one.process.wait()


def serving(one: Launched) -> Callable[[], bool]:
    return lambda: "Ctrl-C ends it" in one.out


def test_once_prints_one_json_object_as_the_last_line(launch: Callable[..., Launched]) -> None:
    one = launch(question="What is 47 + 85?")
    assert one.end() == 0
    result = json.loads(one.out.splitlines()[-1])
    assert (result["reasoning"], result["answer"]) == ("7 + 5 = 12", "132")
    assert result["usage"]["completion_tokens_details"]["reasoning_tokens"] == 10
    assert result["plan"]["name"] == "nano-tp1"
    assert 0 < result["startup_seconds"] < 30


def test_progress_names_each_stage_with_its_seconds_on_stderr_alone(launch: Callable[..., Launched]) -> None:
    one = launch(question="?")
    assert one.end() == 0
    stages = [line.split(" … ")[0] for line in one.err.splitlines() if line.endswith(" s")]
    assert stages[0] == "checking this machine"
    assert stages[1:3] == ["router", "Ray"]
    assert "\r" not in one.err
    assert len(one.out.splitlines()) == 1


def test_when_ready_the_thought_the_answer_and_the_endpoints_are_printed(launch: Callable[..., Launched]) -> None:
    one = launch()
    one.until(serving(one))
    one.process.send_signal(signal.SIGINT)
    assert one.end() == 0
    assert one.out.index("Thinking\n7 + 5 = 12") < one.out.index("Answer\n132") < one.out.index("/v1   (OpenAI")


def test_who_waits_for_the_announcement_has_the_fleet_to_himself(launch: Callable[..., Launched]) -> None:
    one = launch()
    one.until((one.folder / "announced.json").exists)
    assert (one.folder / "logs" / "router.log").read_text(encoding="utf-8") == "not announced\n"
    one.process.send_signal(signal.SIGINT)
    assert one.end() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_serving_is_the_normal_end_and_leaves_nothing(
    launch: Callable[..., Launched], number: signal.Signals
) -> None:
    one = launch()
    one.until(serving(one))
    one.process.send_signal(number)
    assert one.end() == 0


def test_a_signal_while_starting_ends_all_even_what_ignores_it(launch: Callable[..., Launched]) -> None:
    one = launch(fleet="stuck")
    one.until(lambda: "vLLM ranks" in one.err)
    begun = time.monotonic()
    one.process.send_signal(signal.SIGINT)
    assert one.end() == 130
    assert time.monotonic() - begun < 8


def test_a_second_signal_does_not_wait_for_the_first(launch: Callable[..., Launched]) -> None:
    one = launch(fleet="stuck")
    one.until(lambda: "vLLM ranks" in one.err)
    one.process.send_signal(signal.SIGINT)
    one.until(lambda: "ending" in one.err)
    one.process.send_signal(signal.SIGINT)
    assert one.end() == 130


def test_a_launcher_that_is_killed_takes_its_children_along(launch: Callable[..., Launched]) -> None:
    one = launch(fleet="tame")
    one.until(serving(one))
    children = psutil.Process(one.process.pid).children()
    one.process.kill()
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert (len(gone), alive) == (2, [])


@pytest.mark.parametrize(
    ("router", "fleet", "words"),
    [
        ("broken", "good", "plan x: model.checkpoint: no such directory"),
        ("good", "broken", "the ranks of pool main did not start: no memory"),
    ],
)
def test_a_part_that_does_not_start_is_one_line_with_its_own_reason_and_the_logs(
    launch: Callable[..., Launched], router: str, fleet: str, words: str
) -> None:
    one = launch(router, fleet)
    assert one.end() == 2
    [line] = [line for line in one.err.splitlines() if line.startswith("error: ")]
    assert words in line
    assert str(one.folder / "logs") in line
    assert "Traceback" not in one.err


def test_ray_dying_while_it_serves_is_one_line_and_exit_code_1(launch: Callable[..., Launched]) -> None:
    one = launch(fleet="dies")
    one.until(serving(one))
    (one.folder / "die").touch()
    assert one.end() == 1
    assert one.err.splitlines()[-1].startswith("error: Ray's raylet ended")


def test_a_router_killed_while_it_serves_is_named_with_the_signal(launch: Callable[..., Launched]) -> None:
    one = launch()
    one.until(serving(one))
    [router] = [p for p in psutil.Process(one.process.pid).children() if "router.py" in " ".join(p.cmdline())]
    os.kill(router.pid, signal.SIGKILL)
    assert one.end() == 1
    assert one.err.splitlines()[-1].startswith("error: the router was killed by SIGKILL")
