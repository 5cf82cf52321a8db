"""What a simulation is told as text: service levels, measured step times. Each fault is one SimulationError."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from r1_cluster.reading import read_mapping, read_text
from r1_cluster.simulator.costs import Linear
from r1_cluster.simulator.metrics import Slo

_ITEM = re.compile(r"(ttft|ttfa|tpot)(?:_p\d+)?=([0-9.]+)(ms|s|)")


class SimulationError(ValueError):
    """A simulation that cannot be run as it was asked for."""


def parse_slo(text: str) -> Slo:
    """``ttft=10s,tpot=50ms``. What is not named keeps its default. A ``_p95`` after a name changes nothing here: each
    request is judged by itself."""
    given: dict[str, float] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        found = _ITEM.fullmatch(item)
        try:
            seconds = float(found[2]) * (1e-3 if found[3] == "ms" else 1.0) if found else 0.0
        except ValueError:
            seconds = 0.0
        if not found or seconds <= 0:
            raise SimulationError(f"slo {item!r}: give ttft, ttfa or tpot and a time, such as ttft=10s,tpot=50ms")
        if found[1] in given:
            raise SimulationError(f"slo names {found[1]} twice")
        given[found[1]] = seconds
    return Slo(**given)


def parse_budgets(text: str) -> list[int | None]:
    """``none,16k,8k,4096``: thinking tokens, k for 1,024; none for no limit."""
    found: list[int | None] = []
    for item in (part.strip() for part in text.split(",")):
        if item == "none":
            found.append(None)
        elif re.fullmatch(r"[0-9]{1,7}k?", item):
            found.append(int(item.removesuffix("k")) * (1024 if item.endswith("k") else 1))
        else:
            raise SimulationError(f"budget {item!r}: give none or tokens, such as none,16k,8k,4k")
    return found


def load_profile(path: Path) -> Linear:
    """Measured seconds: ``step_s``, ``sequence_s``, ``kv_token_s``, ``prompt_token_s``, optional ``first_token_s``,
    ``prompt_pair_s``, ``prompt_step_s``. ``r1 calibrate`` writes such a file."""
    names = [f.name for f in fields(Linear) if f.name != "kv_tokens"]
    needed = names[:4]
    source = f"profile {path}"
    text = read_text(path, source=source, error=SimulationError)
    value = read_mapping(text, source=source, error=SimulationError)
    if not set(needed) <= set(value) <= set(names):
        perhaps = ", ".join(names[len(needed) :])
        raise SimulationError(f"profile {path}: expected {', '.join(needed)} and perhaps {perhaps}: see r1 calibrate")
    for name, seconds in value.items():
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e3:
            raise SimulationError(f"profile {path}: {name} is {seconds!r}: expected seconds from 0")
    if value["step_s"] + value["sequence_s"] <= 0:
        raise SimulationError(f"profile {path}: step_s and sequence_s are both 0: a step takes time")
    return Linear(kv_tokens=0, **value)
