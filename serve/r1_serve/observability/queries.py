"""PromQL that the dashboards share. ``$model`` is picked above them."""

from __future__ import annotations

from r1_serve.observability.panels import Query

M = 'model=~"$model"'
MODEL = {"model": ("r1_ranks_ready", "model")}


def rate(metric: str, by: str = "model", more: str = "") -> str:
    """Summed over routers."""
    return f"sum by ({by}) (rate({metric}{{{M}{more}}}[$__rate_interval]))"


def quantiles(metric: str, *quantiles: float, labels: str = "{{model}} ") -> tuple[Query, ...]:
    buckets = rate(f"{metric}_bucket", "model, le")
    return tuple(Query(f"histogram_quantile({q:g}, {buckets})", f"{labels}p{100 * q:g}") for q in quantiles)


def rank(metric: str) -> tuple[Query, ...]:
    """One router's view: a gang's number is each router's own."""
    return (Query(f"{metric}{{{M}}}", "{{plan}} gang {{gang}} rank {{rank}}"),)


def engine_rate(metric: str) -> str:
    """Of all ranks, by one router: each sees them all."""
    return f"max by (model) (sum by (model, instance, process) (rate({metric}{{{M}}}[$__rate_interval])))"


def each(expr: str) -> tuple[Query, ...]:
    return (Query(expr, "{{model}}"),)
