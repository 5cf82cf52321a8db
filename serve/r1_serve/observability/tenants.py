"""Who uses what. ``$tenant`` is picked above it."""

from __future__ import annotations

from r1_serve.observability.panels import Dashboard, Panel, Query, Row
from r1_serve.observability.queries import MODEL, M, rate

T = ', tenant=~"$tenant"'


def _tenants(metric: str) -> tuple[Query, ...]:
    return (Query(rate(metric, "tenant", T), "{{tenant}}"),)


TENANTS = Dashboard(
    "r1-tenants",
    "R1: tenants",
    (
        Row(
            "Who uses what",
            (
                Panel("Thinking tokens", _tenants("r1_reasoning_tokens_total"), "A second, by tenant.", "tokens/s"),
                Panel("Answer tokens", _tenants("r1_answer_tokens_total"), "A second, by tenant.", "tokens/s"),
                Panel("Prompt tokens", _tenants("r1_prompt_tokens_total"), "A second, by tenant.", "tokens/s"),
                Panel(
                    "Share of the fleet",
                    (
                        Query(
                            f"sum by (tenant) (r1:tenant_output_tokens:rate5m{{{M}{T}}})"
                            f" / ignoring (tenant) group_left () sum (r1:tenant_output_tokens:rate5m{{{M}}})",
                            "{{tenant}}",
                        ),
                    ),
                    "Of all tokens sent. Under load fairness holds it to the weights of the tenants file.",
                    "percentunit",
                ),
                Panel(
                    "Share of thinking",
                    (Query(f"r1:tenant_reasoning_share:ratio_rate1h{{{M}{T}}}", "{{tenant}}"),),
                    "Near 1: pays for thoughts and gets next to no answers.",
                    "percentunit",
                    limits=(0.95, 0.97),
                ),
                Panel(
                    "Prompt tokens found in a cache",
                    (
                        Query(
                            f"{rate('r1_cached_prompt_tokens_total', 'tenant', T)}"
                            f" / {rate('r1_prompt_tokens_total', 'tenant', T)}",
                            "{{tenant}}",
                        ),
                    ),
                    "Conversations that go on have much; caches are never shared between tenants.",
                    "percentunit",
                ),
            ),
        ),
    ),
    {**MODEL, "tenant": ("r1_prompt_tokens_total", "tenant")},
)
