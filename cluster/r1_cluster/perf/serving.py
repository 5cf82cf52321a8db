"""TTFT, TPOT and throughput of closed-loop clients against engines: ``concurrency`` requests always in flight.

Little's law closes the loop: concurrency = X x (TTFT + TPOT x (output - 1)), X in requests/s. TPOT depends on how many
sequences decode together, TTFT on how many prompts wait, both on X; the fixed point is found by damped iteration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from r1_cluster.perf.batch import Batch
from r1_cluster.perf.step import Engine

ROUNDS = 60
DAMPING = 0.7
SETTLED = 1e-4  # relative change of the running batch that ends the iteration
SATURATED = 0.95  # share of prefill capacity or of decode slots beyond which waiting is the queue's, not the step's


@dataclass(frozen=True)
class Workload:
    """``prompt`` tokens in, ``cached`` of them prefix hits, ``output`` out; ``concurrency`` requests in flight.

    Raises ValueError where a number makes no sense.
    """

    prompt: int
    output: int
    concurrency: float
    cached: int = 0

    def __post_init__(self) -> None:
        if min(self.prompt, self.output, self.concurrency) < 1:
            raise ValueError(f"{self}: prompt, output and concurrency are at least 1")
        if not 0 <= self.cached < self.prompt:
            raise ValueError(f"{self}: at least one prompt token misses the prefix cache")


@dataclass(frozen=True)
class Pools:
    """Engines that serve together. Unified: ``prefill`` is None and each of ``decode_count`` engines does both."""

    decode: Engine
    decode_count: float = 1
    prefill: Engine | None = None
    prefill_count: float = 1
    max_batch: float = float("inf")

    @property
    def gpus(self) -> float:
        split = self.decode.split.gpus * self.decode_count
        return split + (self.prefill.split.gpus * self.prefill_count if self.prefill else 0)


@dataclass(frozen=True)
class Estimate:
    """Seconds, and output tokens/s over all GPUs. ``prefill_load`` and ``slots_load`` are shares of capacity in use."""

    ttft: float
    tpot: float
    throughput: float
    batch: float
    prefill_load: float
    slots_load: float

    @property
    def queue_bound(self) -> bool:
        """Whether TTFT is mostly waiting for capacity that is not there."""
        return self.prefill_load > SATURATED or self.slots_load > SATURATED


def estimate(pools: Pools, load: Workload) -> Estimate:
    """Steady state of ``load`` on ``pools``."""
    return _separate(pools, pools.prefill, load) if pools.prefill else _unified(pools, load)


def _slots(pools: Pools, load: Workload) -> float:
    """Sequences one decode engine can hold: its KV cache at mid-life contexts, and the batch limit."""
    held = load.prompt + load.output / 2
    return max(1.0, min(pools.decode.kv_tokens() / held, pools.max_batch))


@dataclass(frozen=True)
class Station:
    """Prefill with ``count`` prompts in the same steps: seconds for all of them, and seconds between prompts."""

    together: float
    service: float
    count: float


def station(engine: Engine, load: Workload, queue: float, running: Batch | None = None) -> Station:
    """``queue`` prompts are there on average: they share steps up to the token budget of each data-parallel rank.

    c prompts occupy min(c, data)^align ranks: they are not spread evenly. Pipeline stages work on different prompts.
    """
    new = load.prompt - load.cached
    room = max(1, engine.overheads.chunk // new) * engine.split.data
    count = min(max(1.0, queue), room)
    ranks = min(count, engine.split.data) ** engine.constants.serving.align
    together = engine.prefill_seconds(new, past=load.cached, count=count, ranks=ranks, decode=running)
    return Station(together, together / count / engine.split.pipeline, count)


def _unified(pools: Pools, load: Workload) -> Estimate:
    engine, serving = pools.decode, pools.decode.constants.serving
    overheads = engine.overheads
    clients = load.concurrency / pools.decode_count
    context, gaps = load.prompt + load.output / 2, max(1, load.output - 1)
    slots = _slots(pools, load)
    running, ttft, tpot, queue, service = clients, 0.0, 0.0, 1.0, 0.0
    for _ in range(ROUNDS):
        token, beside = engine.decode_seconds(running, context), engine.decodes(running, context)
        step = token * engine.tokens_per_step
        prefill = station(engine, load, queue, beside)
        burst = station(engine, load, clients, beside)
        service = prefill.service
        tpot = token + running / load.output * service
        own = prefill.together + (step if overheads.mixed else 0.0)
        wave = serving.burst_unified * max(0.0, clients - burst.count) * burst.service / 2
        balance = overheads.balance * tpot * (engine.split.data > 1)
        ttft = overheads.ttft + own + step / 2 + wave + balance
        rate = clients / (ttft + tpot * gaps)
        change = min(rate * tpot * gaps, slots) - running
        running += DAMPING * change
        queue += DAMPING * (rate * (ttft - overheads.ttft) - queue)
        if abs(change) < SETTLED * running:
            break
    rate = min(clients / (ttft + tpot * gaps), slots / (tpot * gaps))
    ttft = max(ttft, clients / rate - tpot * gaps)
    throughput = load.output * rate * pools.decode_count
    return Estimate(ttft, tpot, throughput, running, rate * service, running / slots)


def _separate(pools: Pools, engine: Engine, load: Workload) -> Estimate:
    decode, serving = pools.decode, engine.constants.serving
    context, gaps = load.prompt + load.output / 2, max(1, load.output - 1)
    slots = _slots(pools, load) * pools.decode_count
    burst = station(engine, load, load.concurrency / pools.prefill_count)
    wave = load.concurrency * burst.service / pools.prefill_count / 2
    added = engine.overheads
    fixed = added.ttft + added.handover + transfer_seconds(engine, load.prompt) + added.wide_prefill * engine.wide
    running, ttft, tpot, rate, queue, service = load.concurrency, 0.0, 0.0, 0.0, 1.0, 0.0
    for _ in range(ROUNDS):
        tpot = decode.decode_seconds(running / pools.decode_count, context)
        prefill = station(engine, load, queue)
        service = prefill.service / pools.prefill_count
        think = tpot * gaps + fixed + prefill.together - service
        rate = _closed_rate(service, think, load.concurrency)
        waiting = load.concurrency / rate - think + prefill.together - service
        ttft = fixed + waiting + serving.burst_separate * max(0.0, wave - waiting)
        rate = load.concurrency / (ttft + tpot * gaps)
        change = min(rate * tpot * gaps, slots) - running
        running += DAMPING * change
        queue += DAMPING * (rate * waiting / pools.prefill_count - queue)
        if abs(change) < SETTLED * running:
            break
    rate = min(rate, slots / (tpot * gaps))
    ttft = max(ttft, load.concurrency / rate - tpot * gaps)
    return Estimate(ttft, tpot, load.output * rate, running / pools.decode_count, rate * service, running / slots)


def _closed_rate(service: float, think: float, clients: float) -> float:
    """Requests/s through one queueing station and a delay, ``clients`` in the loop (Schweitzer's mean value analysis).

    R = s (1 + X R (N-1)/N) and X = N / (R + Z): a quadratic in X.
    """
    share = (clients - 1) / clients if clients > 1 else 0.0
    a = -share * service * think
    b = service + think + share * service * clients
    if a == 0:
        return clients / b
    root = math.sqrt(b * b + 4 * a * clients)
    return 2 * clients / (b + root)


def transfer_seconds(engine: Engine, tokens: float) -> float:
    """Time to send a prompt's KV cache to another engine over each rank's network port, the last layer exposed.

    Every tensor rank sends its share of MLA's cache.
    """
    size = tokens * engine.model.kv_bytes_per_token(engine.kv_dtype)
    share = engine.constants.collectives.network_bandwidth
    return size / (engine.gpu.network * share * engine.split.tensor)
