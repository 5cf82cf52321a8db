"""A policy as configuration: names of filters, names and weights of scorers. The shipped ones are written so too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from r1_cluster.reading import read_text, read_yaml
from r1_cluster.routing.parts import FILTERS, SCORERS
from r1_cluster.routing.policy import Policy, Scorer


class PolicyError(ValueError):
    """A policy that is not known or not well written. The message says which there are."""


def _known(kind: str, names: Mapping[str, Any]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"no {kind} {name!r}: choose from {', '.join(names)}")
        return name

    return AfterValidator(check)


class PolicySpec(BaseModel):
    """Every filter must let a rank pass; the weighted scores, each 0..1 before its weight, are added."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")
    filters: tuple[Annotated[str, _known("filter", FILTERS)], ...] = ("draining", "full")
    scorers: Mapping[Annotated[str, _known("scorer", SCORERS)], Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    margin: float = Field(default=0.0, ge=0, description="scores this close to the best are equals: longest ago wins")

    def build(self) -> Policy:
        return Policy(
            name=self.name,
            filters=tuple(FILTERS[name] for name in self.filters),
            scorers=tuple(Scorer(name, weight, SCORERS[name]) for name, weight in self.scorers.items()),
            margin=self.margin,
        )


SHIPPED = {
    spec.name: spec
    for spec in (
        # Without scores all are equals, and of equals the one picked longest ago wins: in turn.
        PolicySpec(name="round_robin"),
        # Requests count in hundredfold of free KV: the KV report of a rank lags, the count does not.
        PolicySpec(name="least_load", scorers={"few requests": 1.0, "free KV": 0.01}),
        PolicySpec(name="prefix_aware", scorers={"prefix": 1.0, "few requests": 1.0, "free KV": 0.01}),
        PolicySpec(
            name="thinking_aware",
            filters=("draining", "full", "no seat", "kv forecast"),
            scorers={"kv ahead": 2.0, "level": 1.0, "prefix": 0.5, "few requests": 0.5},
        ),
    )
}


def policy(name_or_path: str) -> Policy:
    """A shipped policy by name, or one of your own from a YAML file. Raises PolicyError."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        try:
            return SHIPPED[name_or_path].build()
        except KeyError:
            known = ", ".join(sorted(SHIPPED))
            text = f"no routing policy {name_or_path!r}: choose one of {known}, or give a .yaml file"
            raise PolicyError(text) from None
    return parse(read_text(path, source=f"routing policy {name_or_path}", error=PolicyError), source=name_or_path)


def parse(text: str, source: str = "policy") -> Policy:
    """Raises PolicyError naming ``source`` and each faulty field."""
    return read_yaml(PolicySpec, text, source=source, whole="policy", error=PolicyError).build()
