"""TTFT, TPOT and throughput of closed-loop clients against engines: ``concurrency`` requests always in flight.

Little's law closes the loop: concurrency = X x (TTFT + TPOT x (output - 1)), X in requests/s. TPOT depends on how many
sequences decode together, TTFT on how many prompts wait, both on X; the fixed point is found by damped iteration.
"""

from __future__ import annotations

from dataclasses import dataclass

from r1_cluster.perf.step import Batch, Engine

ROUNDS = 60
SATURATED = 0.95  # share of prefill capacity or of decode slots beyond which waiting is the queue's, not the step's


@dataclass(frozen=True)
class Workload:
    """``prompt`` tokens in (``cached`` of them prefix hits), ``output`` tokens out, ``concurrency`` requests in flight."""

    prompt: int
    output: int
    concurrency: float
    cached: int = 0


@dataclass(frozen=True)
class Pools:
    """Engines that serve together. Unified: ``prefill`` is None and each of ``decode_count`` engines does both."""

    decode: Engine
    decode_count: float = 1
    prefill: Engine | None = None
    prefill_count: float = 1
    prefill_batch: int = 1
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


def _abreast(engine: Engine) -> float:
    """Data-parallel ranks that prefill in the same step on average: ranks^align."""
    return float(engine.split.data**engine.constants.serving.align)


def _unified(pools: Pools, load: Workload) -> Estimate:
    engine, serving = pools.decode, pools.decode.constants.serving
    clients = load.concurrency / pools.decode_count
    context = load.prompt + load.output / 2
    new, gaps = load.prompt - load.cached, max(1, load.output - 1)
    abreast, slots = min(_abreast(engine), max(1.0, clients)), _slots(pools, load)
    running, ttft, tpot, service = clients, 0.0, 0.0, 0.0
    for _ in range(ROUNDS):
        step = engine.decode_seconds(running, context)
        beside = Batch.decodes(running, context)
        together = engine.prefill_seconds(new, past=load.cached, count=abreast, ranks=abreast, decode=beside)
        service = together / abreast
        tpot = step + running / load.output * service
        own = together + (step if engine.overheads.mixed else 0.0)
        wave = serving.burst * max(0.0, clients - abreast) * service / 2
        ttft = engine.overheads.ttft + own + step / 2 + wave
        wanted = clients * tpot * gaps / (ttft + tpot * gaps)
        running += 0.5 * (min(wanted, slots) - running)
    rate = min(clients / (ttft + tpot * gaps), slots / (tpot * gaps))
    ttft = max(ttft, clients / rate - tpot * gaps)
    throughput = load.output * rate * pools.decode_count
    return Estimate(ttft, tpot, throughput, running, rate * service, running / slots)


def _separate(pools: Pools, prefill: Engine, load: Workload) -> Estimate:
    decode, serving = pools.decode, prefill.constants.serving
    context = load.prompt + load.output / 2
    new, gaps = load.prompt - load.cached, max(1, load.output - 1)
    abreast, slots = _abreast(prefill), _slots(pools, load) * pools.decode_count
    count = pools.prefill_batch * abreast
    together = prefill.prefill_seconds(new, past=load.cached, count=count, ranks=abreast)
    service = together / count / pools.prefill_count
    fixed = prefill.overheads.ttft + prefill.overheads.handover + transfer_seconds(prefill, load.prompt)
    running, ttft, tpot, rate = load.concurrency, 0.0, 0.0, 0.0
    for _ in range(ROUNDS):
        tpot = decode.decode_seconds(running / pools.decode_count, context)
        think = tpot * gaps + fixed
        # A station of one prompt per ``service`` seconds and a delay (Schweitzer's mean value analysis, M/M/1-like).
        rate = _closed_rate(service, think + together - service, load.concurrency)
        waiting = max(together, load.concurrency / rate - think)
        wave = serving.burst * max(0.0, load.concurrency * service / 2 - waiting)
        ttft = fixed + waiting + wave
        rate = load.concurrency / (ttft + tpot * gaps)
        running += 0.5 * (min(rate * tpot * gaps, slots) - running)
    rate = min(rate, slots / (tpot * gaps))
    ttft = max(ttft, load.concurrency / rate - tpot * gaps)
    return Estimate(ttft, tpot, load.output * rate, running / pools.decode_count, rate * service, running / slots)


def _closed_rate(service: float, think: float, clients: float) -> float:
    """Throughput of one queueing station and a delay with ``clients`` in the loop.

    X R = Q, R = s (1 + Q (N-1)/N), X = N / (R + Z): a quadratic in X.
    """
    share = (clients - 1) / clients if clients > 1 else 0.0
    # X (R + Z) = N with R = s / (1 - s X share).
    a = -share * service * think
    b = service + think + share * service * clients
    if a == 0:
        return clients / b
    root = (b * b + 4 * a * clients) ** 0.5
    return 2 * clients / (b + root)


def transfer_seconds(engine: Engine, tokens: float) -> float:
    """Time to send a prompt's KV cache to another engine over each rank's network port, the last layer exposed.

    Every tensor rank sends its share of MLA's cache.
    """
    size = tokens * engine.model.kv_bytes_per_token(engine.kv_dtype)
    share = engine.constants.collectives.network_bandwidth
    return size / (engine.gpu.network * share * engine.split.tensor)
