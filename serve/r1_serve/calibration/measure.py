"""Step times over a grid of batches and contexts, and first tokens over prompt lengths."""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from r1_cluster.simulator.calibration import Beside, First, Step

from r1_serve.calibration.router import CalibrationFailed, Fleet, FleetBusy, Router, Stream, TooSmall

SHORT = 8  # numbers of a short prompt
TOKENS = 24  # of each stream a step's time is the mean of, at least
MAX_TOKENS = 1024  # an answer never gets there
BESIDES = 3  # times that prompts beside a running batch are looked at
PAUSE_S = 0.03  # between two of these prompts: a fleet of two cores is not to be kept busy by asking
REPEATS = 5  # of a first token; the median counts
LONGEST_PROMPT = 4096

Told = Callable[[str], None]
Point = tuple[int, bool]  # sequences a rank, and whether after long prompts


@dataclass(frozen=True, slots=True)
class Grid:
    """``batches``: sequences a rank; ``seconds`` a step's time is the mean of. After ``minutes`` no further batch is
    begun, but for those without which there is no fit."""

    batches: tuple[int, ...]
    seconds: float
    minutes: float = 4.0

    @classmethod
    def up_to(cls, most: int, seconds: float, minutes: float = 4.0) -> Grid:
        """1, 2, 4, … and ``most``."""
        return cls(tuple(sorted({most, *(1 << power for power in range(most.bit_length()))})), seconds, minutes)

    def within(self, fleet: Fleet) -> Grid:
        """No more sequences than a rank of ``fleet`` has seats for. Raises TooSmall."""
        if fleet.seats < 2:
            raise TooSmall(f"a rank of plan {fleet.plan} runs {fleet.seats} request at once: raise max_num_seqs")
        return Grid.up_to(min(self.batches[-1], fleet.seats), self.seconds, self.minutes)

    @property
    def long(self) -> tuple[int, ...]:
        """Batches that are measured with long prompts as well, whose cache more of them might not fit: every other one
        up to a quarter of the most."""
        return tuple(batch for batch in self.batches[::2] if batch <= max(1, self.batches[-1] // 4))

    def points(self) -> tuple[list[Point], list[Point]]:
        """The outermost, which alone make a fit, and the rest."""
        rows = [[(batch, False) for batch in self.batches], [(batch, True) for batch in self.long]]
        outermost = [point for row in rows for point in dict.fromkeys((row[0], row[-1]))]
        return outermost, [point for row in rows for point in row[1:-1]]


@dataclass(frozen=True, slots=True)
class Measured:
    fleet: Fleet
    steps: tuple[Step, ...]
    firsts: tuple[First, ...]
    besides: tuple[Beside, ...] = ()


async def measure(router: Router, grid: Grid, *, force: bool = False, told: Told = lambda _: None) -> Measured:
    """Raises CalibrationFailed. ``force``: also beside the requests of others, which the result then contains."""
    fleet = await router.fleet()
    if not force and not await router.idle():
        raise FleetBusy(
            f"{fleet.running} requests run on {fleet.model} and {fleet.waiting} wait: measure when nobody else asks, "
            "or with --force"
        )
    grid, deadline = grid.within(fleet), time.monotonic() + 60 * grid.minutes
    texts = Prompts()
    per_number = await router.prompt_tokens(texts.of(104)) - await router.prompt_tokens(texts.of(4))
    room = fleet.max_model_len - MAX_TOKENS // 2
    longest = min(LONGEST_PROMPT, room // 2)
    if longest < 64:
        raise TooSmall(f"a context of {fleet.max_model_len} tokens is too short to measure: at least 640")
    numbers = max(2 * SHORT, int(longest * 100 / per_number))
    firsts = []
    for count in (SHORT, numbers // 4, numbers // 2, numbers):
        told(f"first tokens of prompts of {count} numbers")
        firsts.append(await _first(router, texts, count))
    short, long = firsts[0].prompt_tokens, firsts[-1].prompt_tokens
    steps: list[Step] = []

    async def measured(points: Sequence[Point], until: float) -> None:
        for batch, after_long in points:
            count, length = (numbers, long) if after_long else (SHORT, short)
            tokens = answer_tokens(fleet, batch, length)
            if tokens < 2 * TOKENS or time.monotonic() > until:
                continue
            told(f"{batch} sequences a rank after prompts of {length} tokens")
            prompts = [texts.of(count) for _ in range(batch * fleet.ranks)]
            streams = await router.together(prompts, tokens, grid.seconds, TOKENS)
            steps.append(step_of(streams, length, fleet.gangs))
            if not await router.idle() and not force:
                raise FleetBusy("others ask this fleet meanwhile: measure when nobody does, or with --force")

    outermost, rest = grid.points()
    await measured(outermost, math.inf)
    batch = grid.batches[len(grid.batches) // 2]
    told(f"prompts beside {batch} sequences a rank")
    tokens = answer_tokens(fleet, batch, short)
    besides = [await _beside(router, texts, batch * fleet.ranks, short, grid.seconds, tokens) for _ in range(BESIDES)]
    await measured(rest, deadline)
    return Measured(fleet, tuple(steps), tuple(firsts), tuple(besides))


def answer_tokens(fleet: Fleet, batch: int, prompt_tokens: int) -> int:
    """The longest answers that ``batch`` sequences a rank may give within its context and cache: none is preempted."""
    held = min(fleet.max_model_len - 16, fleet.kv_tokens // batch)
    return min(MAX_TOKENS, held - prompt_tokens)


def step_of(streams: Sequence[Stream], prompt_tokens: int, gangs: int) -> Step:
    """Mean step of the time in which all ``streams`` ran, evenly over so many gangs. Raises CalibrationFailed."""
    start = max(stream.times[0] for stream in streams)
    end = min(stream.times[-1] for stream in streams)
    within = [sum(start < at <= end for at in stream.times) for stream in streams]
    if end <= start or min(within) < 2:
        raise CalibrationFailed(f"{len(streams)} answers hardly ran at once: give a smaller --most")
    begun = [sum(at <= start for at in stream.times) for stream in streams]
    cached = sum(prompt_tokens + before + during / 2 for before, during in zip(begun, within, strict=True))
    seconds = (end - start) / (sum(within) / len(streams))
    return Step(max(1, round(len(streams) / gangs)), cached / gangs, seconds)


async def _beside(router: Router, texts: Prompts, batch: int, length: int, seconds: float, tokens: int) -> Beside:
    """Short prompts, one at a time, in the middle of a batch's run: what each takes from it."""
    prompts = [texts.of(SHORT) for _ in range(batch)]
    taken: list[tuple[float, float]] = []

    async def ask() -> None:
        await asyncio.sleep(seconds / 2)  # in which the batch is seen alone
        until = time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            await router.prompt_tokens(texts.of(SHORT))
            taken.append((began, time.perf_counter()))
            await asyncio.sleep(PAUSE_S)

    asking: list[asyncio.Task[None]] = []
    try:
        streams = await router.together(
            prompts, tokens, 2 * seconds, TOKENS, begun=lambda: asking.append(asyncio.create_task(ask()))
        )
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    await router.idle()
    return beside_of(streams, taken, length)


def beside_of(streams: Sequence[Stream], taken: Sequence[tuple[float, float]], prompt_tokens: int) -> Beside:
    """``taken``: when each prompt beside the ``streams`` was asked and answered. Raises CalibrationFailed."""
    start, end = max(stream.times[0] for stream in streams), min(stream.times[-1] for stream in streams)
    within = [(began, ended) for began, ended in taken if ended <= end]
    if len(within) < 2:
        raise CalibrationFailed("prompts beside running answers got none of their own in time: give more --seconds")
    first, last = within[0][0], within[-1][1]
    steps = sum(stream.since(first) - stream.since(last) for stream in streams) / len(streams)
    # Before and after: what else the machine does changes over seconds.
    alone = sum(stream.since(start) - stream.since(end) for stream in streams) / len(streams) - steps
    alone_s = (first - start) + (end - last)
    lost = (last - first) - steps * alone_s / max(1.0, alone)
    return Beside(prompt_tokens, max(0.0, lost / len(within)))


async def _first(router: Router, texts: Prompts, numbers: int) -> First:
    prompt = texts.of(numbers)
    tokens = await router.prompt_tokens(prompt)  # which also is what the first of its length may pay extra for
    taken = [await router.first_token(texts.of(numbers)) for _ in range(REPEATS)]
    return First(tokens, statistics.median(taken))


class Prompts:
    """Numbers that no prefix cache has seen."""

    def __init__(self) -> None:
        self._random = random.Random(time.time_ns())  # noqa: S311

    def of(self, numbers: int) -> str:
        return " ".join(str(self._random.randrange(100, 1000)) for _ in range(numbers))
