"""Seconds of an engine's steps, as a simulation asks for them millions of times.

A decode step is exactly linear in the cached tokens once the number of sequences is given (``r1_cluster.perf``), so two
looks at the model give a line, remembered by count. What prompts add to a step is remembered by rounded lengths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Protocol

from r1_cluster.catalog import Architecture, gpu, model
from r1_cluster.perf.batch import Batch, Speculation
from r1_cluster.perf.constants import fitted
from r1_cluster.perf.layout import Split
from r1_cluster.perf.step import Engine
from r1_cluster.plan import Plan, PlanError, Pool


class Costs(Protocol):
    """What a gang takes. ``kv_tokens``: of one rank. ``first_token_s``: a first token's way besides the steps."""

    @property
    def kv_tokens(self) -> int: ...
    @property
    def first_token_s(self) -> float: ...

    def line(self, sequences: int) -> tuple[float, float]:
        """Seconds of a decode step: a + b x cached tokens of the whole gang."""

    def prefill(self, sequences: int, tokens: int, past: int, ranks: int, prompts: int) -> float:
        """Seconds that ``tokens`` new tokens of ``prompts`` prompts, after ``past`` cached ones, on ``ranks`` ranks,
        add to a step."""


@dataclass(frozen=True)
class Linear:
    """Seconds a step, a sequence in it, a KV token read, a prompt token computed, a pair of one and a token before it,
    and what any prompts add to the fixed part of their step: what a calibration measures."""

    step_s: float
    sequence_s: float
    kv_token_s: float
    prompt_token_s: float
    kv_tokens: int
    first_token_s: float = 0.0
    prompt_pair_s: float = 0.0
    prompt_step_s: float = 0.0

    def line(self, sequences: int) -> tuple[float, float]:
        return self.step_s + self.sequence_s * sequences, self.kv_token_s

    def prefill(self, sequences: int, tokens: int, past: int, ranks: int, prompts: int) -> float:
        fixed = self.prompt_step_s
        if not sequences:
            fixed += self.step_s  # nothing decodes in this step: its fixed part is not paid yet
        pairs = tokens * (past + tokens / (2 * prompts))
        return fixed + (self.prompt_token_s * tokens + self.prompt_pair_s * pairs) / ranks + self.kv_token_s * past


@dataclass
class Modelled:
    """By the performance model. With drafts a step is what one token of each sequence takes on average."""

    engine: Engine
    kv_tokens: int
    _lines: dict[int, tuple[float, float]] = field(default_factory=dict)
    _prefills: dict[tuple[int, int, int, int], float] = field(default_factory=dict)

    @property
    def first_token_s(self) -> float:
        return self.engine.overheads.ttft

    def line(self, sequences: int) -> tuple[float, float]:
        line = self._lines.get(sequences)
        if line is None:
            n = sequences if sequences < 64 else _rounded(sequences, 1.02)
            line = self._lines[sequences] = self._lines[n] = self._lines.get(n) or self._line(n)
        return line

    def _line(self, n: int) -> tuple[float, float]:
        low, high = 256.0, 8192.0
        a, b = (self.engine.decode_seconds(n, context) for context in (low, high))
        slope = (b - a) / (n * (high - low))
        return a - slope * n * low, slope

    def prefill(self, sequences: int, tokens: int, past: int, ranks: int, prompts: int) -> float:
        n, m = _rounded(sequences, 2.0), _rounded(tokens, 1.1)
        key = (n, m, _rounded(past, 1.5), _rounded(ranks, 1.25))
        each = self._prefills.get(key)
        if each is None:
            running = self.engine.decodes(n, 2048) if self.engine.overheads.mixed else Batch()
            # Batch.prompts counts prompts of equal length: one a rank.
            chunk = Batch.prompts(m / key[3], past=key[2], count=key[3], ranks=key[3])
            added = self.engine.added_seconds(running, chunk)
            # Pipeline stages work on different microbatches: a prompt holds up the others by one stage's time.
            each = self._prefills[key] = added * self.engine.overheads.prefill / m / self.engine.split.pipeline
        return each * tokens


# r1-nano on one core of a CPU: what `r1 rehearse` shows, to the order. `--profile` gives what was measured.
NANO = Linear(step_s=0.008, sequence_s=0.0009, kv_token_s=2e-8, prompt_token_s=6e-5, kv_tokens=1)


def drafting(plan: Plan, profile: Linear | None, acceptance: float | None = None) -> Speculation | None:
    """What the plan's fleet drafts, by default as often accepted as a published run's. None where steps are measured:
    a profile of a fleet that drafts has it in its costs."""
    drafts = plan.engine.num_speculative_tokens
    if drafts is None or profile or plan.fleet.accelerator == "cpu":
        return None
    return Speculation(drafts, fitted().serving.acceptance if acceptance is None else acceptance)


def costs_of(plan: Plan, pool: Pool, profile: Linear | None = None, *, speculation: Speculation | None = None) -> Costs:
    """Of one gang of ``pool``; ``speculation``: instead of what the plan says. Raises PlanError for an unknown model or
    GPU, for weights that do not fit, and for ``speculation`` where no model tells what it costs."""
    if speculation and speculation.drafts and (profile or plan.fleet.accelerator == "cpu"):
        raise PlanError(f"plan {plan.name}: what drafts cost is known of the modelled GPUs alone: leave --drafts out")
    own = drafting(plan, profile)
    speculation = speculation or own
    if speculation and not speculation.drafts:
        speculation = None
    try:
        shape = _architecture(plan)
        if plan.fleet.accelerator == "cpu":
            size = (plan.fleet.kv_cache_gib_per_rank or 0) * 2**30
            layers = shape.layers + (shape.mtp_layers if plan.engine.num_speculative_tokens else 0)
            tokens = int(size / (layers * shape.kv_bytes_per_layer("float32")))
            return _with_kv(profile or NANO, tokens)
        card, split = gpu(plan.fleet.accelerator), split_of(pool)
        engine = Engine.of(shape, card, split, "vllm", kv_dtype=plan.engine.kv_cache_dtype, speculation=speculation)
    except ValueError as e:
        raise PlanError(f"plan {plan.name}: {e}") from e
    known = next((each for each in plan.memory if each.pool == pool.name), None)
    if known is None or not known.kv_tokens:
        data = pool.layout.data_parallel_size
        tokens = engine.kv_tokens(utilization=plan.engine.gpu_memory_utilization) // data
    elif (speculation is None) == (own is None):
        tokens = known.kv_tokens
    else:  # the layer that drafts comes into the same memory, or goes
        tokens = int((known.weights + known.kv_cache - engine.weight_bytes()) / engine.kv_bytes_per_token())
    if tokens < plan.engine.max_num_batched_tokens:
        raise PlanError(
            f"plan {plan.name}: {shape.name} as {pool.layout} on {card.name} leaves room for {tokens} KV tokens a "
            "rank, less than one step works on: use more or larger GPUs, or r1 plan"
        )
    return _with_kv(profile, tokens) if profile else Modelled(engine, tokens)


def _architecture(plan: Plan) -> Architecture:
    """By the served name, which may be one's own; then by the checkpoint, which may be a folder."""
    try:
        return model(plan.model.name)
    except ValueError:
        return model(plan.model.checkpoint)


def split_of(pool: Pool) -> Split:
    layout = pool.layout
    span = layout.tensor_parallel_size * layout.data_parallel_size
    expert = layout.expert_parallel_size
    return Split(
        tensor=layout.tensor_parallel_size,
        data=layout.data_parallel_size,
        expert_tensor=span // expert,
        expert=expert,
        pipeline=layout.pipeline_parallel_size,
    )


def _with_kv(profile: Linear, tokens: int) -> Linear:
    return replace(profile, kv_tokens=tokens)


@lru_cache(maxsize=1 << 16)
def _rounded(value: int, growth: float) -> int:
    """To the nearest of a geometric row."""
    return 0 if value <= 0 else max(1, round(growth ** round(math.log(value) / math.log(growth))))
