"""Step times over a grid of batches and contexts, and first tokens over prompt lengths."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from r1_cluster.simulator.calibration import Beside, First, Step

from r1_serve.calibration.router import CalibrationFailed, Fleet, Router, Stream

SHORT = 8  # numbers of a short prompt
TOKENS = 24  # of each stream a step's time is the mean of, at least
MAX_TOKENS = 1024  # an answer never gets there
BESIDES = 3  # times that prompts beside a running batch are looked at
REPEATS = 5  # of a first token; the median counts
LONGEST_PROMPT = 4096

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Grid:
    """``batches``: sequences a rank; ``seconds`` a step's time is the mean of."""

    batches: tuple[int, ...]
    seconds: float

    @classmethod
    def up_to(cls, most: int, seconds: float) -> Grid:
        """1, 2, 4, … and ``most``."""
        return cls(tuple(sorted({most, *(1 << power for power in range(most.bit_length()))})), seconds)

    @property
    def long(self) -> tuple[int, ...]:
        """Batches that are measured with long prompts as well, whose cache more of them might not fit: every other one
        up to a quarter of the most."""
        return tuple(batch for batch in self.batches[::2] if batch <= max(1, self.batches[-1] // 4))


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
        raise CalibrationFailed(
            f"{fleet.running} requests run on {fleet.model} and {fleet.waiting} wait: measure when nobody else asks, "
            "or with --force"
        )
    texts = Prompts()
    per_number = await router.prompt_tokens(texts.of(104)) - await router.prompt_tokens(texts.of(4))
    room = fleet.max_model_len - MAX_TOKENS // 2
    longest = min(LONGEST_PROMPT, room // 2)
    if longest < 64:
        raise CalibrationFailed(f"a context of {fleet.max_model_len} tokens is too short to measure: at least 640")
    numbers = max(2 * SHORT, int(longest * 100 / per_number))
    firsts = []
    for count in (SHORT, numbers // 4, numbers // 2, numbers):
        told(f"first tokens of prompts of {count} numbers")
        firsts.append(await _first(router, texts, count))
    short, long = firsts[0].prompt_tokens, firsts[-1].prompt_tokens
    steps = []
    for batches, count, length in ((grid.batches, SHORT, short), (grid.long, numbers, long)):
        max_tokens = min(MAX_TOKENS, fleet.max_model_len - length - 16)
        for batch in batches:
            told(f"{batch} sequences a rank after prompts of {length} tokens")
            prompts = [texts.of(count) for _ in range(batch * fleet.ranks)]
            streams = await router.together(prompts, max_tokens, grid.seconds, TOKENS)
            steps.append(step_of(streams, length, fleet.gangs))
            if not await router.idle() and not force:
                raise CalibrationFailed("others ask this fleet meanwhile: measure when nobody does, or with --force")
    batch = grid.batches[len(grid.batches) // 2] * fleet.ranks
    told(f"prompts beside {batch} sequences")
    besides = [await _beside(router, texts, batch, short, grid.seconds) for _ in range(BESIDES)]
    return Measured(fleet, tuple(steps), tuple(firsts), tuple(besides))


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


async def _beside(router: Router, texts: Prompts, batch: int, length: int, seconds: float) -> Beside:
    """Short prompts one after the other while a batch runs: what each takes from it."""
    prompts = [texts.of(SHORT) for _ in range(batch)]
    taken: list[tuple[float, float]] = []

    async def ask() -> None:
        await asyncio.sleep(seconds / 2)  # in which the batch is seen alone
        while True:
            began = time.perf_counter()
            await router.prompt_tokens(texts.of(SHORT))
            taken.append((began, time.perf_counter()))

    asking: list[asyncio.Task[None]] = []
    try:
        streams = await router.together(
            prompts, MAX_TOKENS, 2 * seconds, TOKENS, begun=lambda: asking.append(asyncio.create_task(ask()))
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
    alone = sum(stream.since(start) - stream.since(first) for stream in streams) / len(streams)
    steps = sum(stream.since(first) - stream.since(last) for stream in streams) / len(streams)
    lost = (last - first) - steps * (first - start) / max(1.0, alone)
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
