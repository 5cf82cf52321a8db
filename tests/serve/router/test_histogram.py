"""The token path's histogram reads like the client library's own."""

from __future__ import annotations

import random

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import generate_latest
from r1_serve.router.histogram import LoopHistogram

BUCKETS = (0.002, 0.01, 1.0, 5.0)


def test_what_is_scraped_is_the_same_as_from_the_clients_histogram() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    fast = LoopHistogram("x_seconds", "Text", "model", BUCKETS)
    ours.register(fast)
    slow = Histogram("x_seconds", "Text", ("model",), registry=theirs, buckets=BUCKETS)
    rng = random.Random(0)
    values = [0.0, *BUCKETS, 99.0, *(rng.random() * 10 for _ in range(100))]
    for model in ("a", "b"):
        for value in values:
            fast.labels(model).observe(value)
            slow.labels(model).observe(value)
    lines = [line for line in generate_latest(theirs).decode().splitlines() if "_created" not in line]
    assert generate_latest(ours).decode().splitlines() == lines
