"""A grid over a fleet whose costs are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from r1_cluster.simulator.calibration import Beside, calibrate
from r1_cluster.simulator.options import load_profile
from r1_serve.calibration import measure as module
from r1_serve.calibration.command import profile
from r1_serve.calibration.measure import Grid, Measured, answer_tokens, beside_of, measure, step_of
from r1_serve.calibration.router import CalibrationFailed, Fleet, FleetBusy, Router, Stream, TooSmall

FLEET = Fleet("r1", "a-plan", max_model_len=4096, gangs=2, ranks=4, running=0, waiting=0, seats=64, kv_tokens=100_000)
STEP_S, SEQUENCE_S, PROMPT_TOKEN_S = 0.01, 0.001, 1e-4


class Known(Router):
    """Steps of a gang take STEP_S and SEQUENCE_S for each of its sequences; a number is two tokens."""

    def __init__(self, fleet: Fleet = FLEET, *, quiet: bool = True) -> None:
        self.state, self.quiet = fleet, quiet
        self.batches: list[int] = []

    async def fleet(self) -> Fleet:
        return self.state

    async def idle(self, within_s: float = 0.0) -> bool:
        return self.quiet

    async def prompt_tokens(self, prompt: str) -> int:
        return 4 + 2 * len(prompt.split())

    async def first_token(self, prompt: str) -> float:
        return 0.02 + PROMPT_TOKEN_S * await self.prompt_tokens(prompt)

    async def together(
        self,
        prompts: Sequence[str],
        max_tokens: int,
        seconds: float,
        tokens: int,
        *,
        begun: Callable[[], None] = lambda: None,
    ) -> list[Stream]:
        self.batches.append(len(prompts))
        step = STEP_S + SEQUENCE_S * len(prompts) / self.state.gangs
        return [timed(0.1 + step * (number % 3), step, 60) for number, _ in enumerate(prompts)]


@pytest.fixture(autouse=True)
def besides(monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs a clock of its own: a prompt of 20 tokens holds the others up for 5 ms."""

    async def known(*_: object) -> Beside:
        return Beside(20, 0.005)

    monkeypatch.setattr(module, "_beside", known)


def timed(first: float, step: float, tokens: int) -> Stream:
    stream = Stream()
    stream.times = [first + step * n for n in range(tokens)]
    return stream


async def test_the_costs_of_a_gang_come_back_whatever_the_ranks() -> None:
    router = Known()
    found = await measure(router, Grid.up_to(16, 1.0))
    assert router.batches == [4, 64, 4, 16, 8, 16, 32], "on four ranks, short and long prompts: the outermost first"
    assert [step.sequences for step in found.steps] == [2, 32, 2, 8, 4, 8, 16], "of one of two gangs"
    linear = calibrate(found.steps, found.firsts, found.besides).linear
    assert linear.step_s == pytest.approx(STEP_S, rel=0.05)
    assert linear.sequence_s == pytest.approx(SEQUENCE_S, rel=0.05)
    assert linear.prompt_token_s == pytest.approx(PROMPT_TOKEN_S)
    assert linear.prompt_step_s == pytest.approx(0.005 - 20 * PROMPT_TOKEN_S)
    assert linear.first_token_s == pytest.approx(0.02 - linear.step_s - linear.prompt_step_s)


async def test_a_profile_is_what_a_simulation_reads(tmp_path: Path) -> None:
    found = await measure(Known(), Grid.up_to(8, 1.0))
    fitted = calibrate(found.steps, found.firsts)
    path = tmp_path / "profile.yaml"
    path.write_text(profile(found, fitted, "http://router", 0.25))
    read = load_profile(path)
    assert read.step_s == pytest.approx(fitted.linear.step_s, rel=1e-3)
    assert read.first_token_s == pytest.approx(fitted.linear.first_token_s, rel=1e-3)
    for told in ("a-plan: 2 gangs of 2 ranks", "#   8 sequences of a gang, ", "25% of this machine's cores"):
        assert told in path.read_text()


async def test_a_busy_fleet_is_not_measured_unless_told() -> None:
    busy = Known(replace(FLEET, running=3, waiting=1), quiet=False)
    with pytest.raises(FleetBusy, match=r"3 requests run on r1 and 1 wait: .* --force"):
        await measure(busy, Grid.up_to(4, 1.0))
    assert isinstance(await measure(busy, Grid.up_to(4, 1.0), force=True), Measured)


async def test_a_context_too_short_to_measure_is_said() -> None:
    with pytest.raises(TooSmall, match="512 tokens is too short"):
        await measure(Known(replace(FLEET, max_model_len=512)), Grid.up_to(4, 1.0))


async def test_no_batch_is_larger_than_a_ranks_seats() -> None:
    router = Known(replace(FLEET, seats=6))
    await measure(router, Grid.up_to(64, 1.0))
    assert max(router.batches) == 6 * FLEET.ranks
    with pytest.raises(TooSmall, match="runs 1 request at once: raise max_num_seqs"):
        await measure(Known(replace(FLEET, seats=1)), Grid.up_to(64, 1.0))


async def test_batches_that_the_cache_does_not_hold_are_left_out() -> None:
    router = Known(replace(FLEET, kv_tokens=4000))
    await measure(router, Grid.up_to(64, 1.0))
    assert max(router.batches) == 32 * FLEET.ranks, "64 have 62 tokens each, too few after their prompts"


def test_answers_end_before_the_cache_is_full() -> None:
    assert answer_tokens(FLEET, 1, 100) == 1024
    assert answer_tokens(replace(FLEET, max_model_len=512), 1, 100) == 512 - 16 - 100
    for batch in (8, 50, 64):
        assert batch * (200 + answer_tokens(replace(FLEET, kv_tokens=20_000), batch, 200)) <= 20_000


async def test_when_the_time_is_up_what_a_fit_needs_is_measured_all_the_same() -> None:
    router = Known()
    found = await measure(router, Grid.up_to(16, 1.0, minutes=0.0))
    assert router.batches == [4, 64, 4, 16]
    assert calibrate(found.steps, found.firsts, found.besides).linear.step_s == pytest.approx(STEP_S, rel=0.05)


def test_a_step_counts_only_while_all_run() -> None:
    early, late = timed(0.0, 0.1, 100), timed(2.05, 0.1, 100)  # the first 2 s are not of two sequences
    early.times = [at / 2 for at in early.times if at < 4.1] + [at for at in early.times if at > 2.05]
    found = step_of([early, late], prompt_tokens=50, gangs=1)
    assert found.seconds == pytest.approx(0.1, rel=0.02)
    assert found.sequences == 2
    assert 100 < found.cached < 300


def test_answers_that_never_run_at_once_tell_nothing() -> None:
    with pytest.raises(CalibrationFailed, match="hardly ran at once"):
        step_of([timed(0.0, 0.1, 5), timed(9.0, 0.1, 5)], prompt_tokens=50, gangs=1)


def test_what_prompts_take_from_a_batch_is_what_it_lost() -> None:
    """100 steps of 10 ms alone; then each of 20 prompts makes one step 6 ms longer, every 50 ms."""
    at, times = 0.0, []
    for step in range(300):
        at += 0.010 + (0.006 if step >= 100 and (step - 100) % 5 == 0 and step < 200 else 0.0)
        times.append(at)
    stream = Stream()
    stream.times = times
    begins = [times[99 + 5 * number] for number in range(20)]
    found = beside_of([stream, stream], [(began, began + 0.05) for began in begins], prompt_tokens=30)
    assert found.seconds == pytest.approx(0.006, rel=0.05)


def test_prompts_that_got_no_answer_in_time_tell_nothing() -> None:
    with pytest.raises(CalibrationFailed, match="give more --seconds"):
        beside_of([timed(0.0, 0.01, 100)], [(0.5, 2.0)], prompt_tokens=30)


def test_batches_double_up_to_the_most() -> None:
    assert Grid.up_to(48, 1.0).batches == (1, 2, 4, 8, 16, 32, 48)
    assert Grid.up_to(48, 1.0).long == (1, 4)
    assert math.isclose(Grid.up_to(2, 0.5).seconds, 0.5)
