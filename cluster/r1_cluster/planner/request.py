"""What a plan is asked for: the fleet, the service levels, the objective. Parsed from the words of the command line."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from enum import StrEnum

from r1_cluster.catalog import Gpu, gpu
from r1_cluster.plan import PlanError

CPU = "cpu"
MOST_GPUS = 16384
TRAY = 4  # GPUs of one node of a rack-scale NVLink domain (GB200 NVL72: 18 trays of 4)
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "": 1.0}


class PlanningError(PlanError):
    """No plan can be made of this. One line that says why and what to change."""


class Objective(StrEnum):
    """What the best layout has most of: tokens a second, the earliest answers, or the fewest GPU hours a token."""

    THROUGHPUT = "throughput"
    LATENCY = "latency"
    COST = "cost"


@dataclass(frozen=True)
class FleetSpec:
    """``count`` GPUs in nodes of ``per_node``; ``gpu`` is None for CPU ranks, whose domain is the machine."""

    name: str
    gpu: Gpu | None
    count: int
    per_node: int

    @property
    def nodes(self) -> int:
        return math.ceil(self.count / self.per_node)

    @property
    def domain(self) -> int:
        """GPUs joined by NVLink (or Infinity Fabric): a node, or the part of a rack the fleet has."""
        return self.gpu.domain if self.gpu else self.per_node

    def __str__(self) -> str:
        return f"{self.count}x{self.name}"

    def resized(self, count: int) -> FleetSpec:
        return replace(self, count=count, per_node=min(self.per_node, count))


def parse_fleet(text: str, *, nodes: int | None = None, per_node: int | None = None) -> FleetSpec:
    """``16xH200``, or ``H200`` with ``nodes``. Raises PlanningError naming what does not fit together."""
    match = re.fullmatch(r"\s*(?:(\d+)\s*[xX*]\s*)?([A-Za-z][\w.-]*)\s*", text)
    if match is None:
        raise PlanningError(f"--gpus {text!r}: write a count and a GPU, such as 16xH200")
    name = match[2]
    card = None
    if name.lower() != CPU:
        try:
            card = gpu(name)
        except ValueError as e:
            raise PlanningError(f"--gpus {text}: {e}, or cpu for a rehearsal of r1-nano") from None
    for option, value in (("--nodes", nodes), ("--gpus-per-node", per_node)):
        if value is not None and value < 1:
            raise PlanningError(f"{option} is {value}: at least 1")
    usual = 8 if card is None or card.domain <= 8 else TRAY
    count = int(match[1]) if match[1] else (nodes or 1) * (per_node or usual)
    if not 1 <= count <= MOST_GPUS:
        raise PlanningError(f"--gpus {text}: {count} GPUs: give from 1 to {MOST_GPUS}")
    each = per_node or (math.ceil(count / nodes) if nodes else min(count, usual))
    if nodes is not None and nodes * each != count:
        raise PlanningError(f"--gpus {text}: {nodes} nodes of {each} are {nodes * each} GPUs, not {count}")
    if count > each and count % each:
        raise PlanningError(
            f"--gpus {text}: {count} GPUs do not fill nodes of {each}: give a multiple of {each}, or --gpus-per-node"
        )
    each = min(each, count)
    if card is not None and card.domain <= 8:  # half a board is half a domain
        card = replace(card, domain=min(each, card.domain))
    return FleetSpec(card.name if card else CPU, card, count, each)


@dataclass(frozen=True)
class Slo:
    """95th percentiles in seconds that a plan has to hold; None: anything goes.

    TTFT: first token, thought or not. TTFA: first token of the answer. TPOT: between two tokens, a request's mean.
    """

    ttft_p95: float | None = None
    ttfa_p95: float | None = None
    tpot_p95: float | None = None

    def __post_init__(self) -> None:
        if self.ttfa_p95 is not None:
            for name, value in (("ttft_p95", self.ttft_p95), ("tpot_p95", self.tpot_p95)):
                if value is not None and value > self.ttfa_p95:
                    raise PlanningError(
                        f"--slo contradicts itself: {name}={value:g}s is more than ttfa_p95={self.ttfa_p95:g}s, and no "
                        f"answer begins before the first token: lower {name}, raise ttfa_p95, or leave one out"
                    )

    def __str__(self) -> str:
        return ", ".join(f"{name}={seconds(value)}" for name, value in vars(self).items() if value is not None)


def parse_slo(text: str | None) -> Slo:
    """``ttfa_p95=60,tpot_p95=50ms``; seconds where no unit (us, ms, s, m) is given."""
    found: dict[str, float] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, _, value = (piece.strip().lower() for piece in part.partition("="))
        if name not in Slo.__dataclass_fields__:
            raise PlanningError(
                f"--slo {part.strip()}: choose of {', '.join(Slo.__dataclass_fields__)}, as in tpot_p95=50ms"
            )
        match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s|m|)", value)
        if match is None or float(match[1]) == 0:
            raise PlanningError(f"--slo {name}={value}: give a time above 0, such as 2s or 50ms")
        if name in found:
            raise PlanningError(f"--slo names {name} twice: give one value")
        found[name] = float(match[1]) * SECONDS[match[2]]
        if name == "tpot_p95" and not match[2] and found[name] >= 1:
            raise PlanningError(
                f"--slo tpot_p95={value} is {value} seconds a token: write {value}ms, or {value}s if meant"
            )
    return Slo(**found)


def parse_budget(text: str) -> int | None:
    """``none``, ``8k`` or ``8192``: tokens of thinking, None for no limit."""
    wanted = text.strip().lower()
    if wanted == "none":
        return None
    match = re.fullmatch(r"(\d+)(k?)", wanted)
    if match is None or int(match[1]) == 0:
        raise PlanningError(f"--budget {text}: give none, or tokens such as 8k")
    return int(match[1]) * (1024 if match[2] else 1)


def seconds(value: float) -> str:
    """A time for a reader: 41 ms, 1.3 s, 412 s."""
    if value < 1:
        return f"{value * 1e3:.3g} ms"
    return f"{value:.3g} s" if value < 1000 else f"{value:,.0f} s"
