"""Is the fleet well, and where is it not?"""

from __future__ import annotations

from r1_serve.observability.panels import Dashboard, Panel, Query, Row
from r1_serve.observability.queries import MODEL, M, each, engine_rate, quantiles, rank, rate

FLEET = Dashboard(
    "r1-fleet",
    "R1: fleet",
    (
        Row(
            "Is it well?",
            (
                Panel(
                    "Ready ranks",
                    (
                        Query(f"max by (model) (r1_ranks_ready{{{M}}})", "{{model}} ready"),
                        Query(f"max by (model, plan) (r1_plan_ranks{{{M}}})", "{{plan}} planned"),
                    ),
                    "Ranks of whole gangs that take new requests, and how many the plans ask for.",
                    kind="stat",
                    width=6,
                ),
                Panel(
                    "Service level: burn rate",
                    each(f"max by (model) (r1_slo_burn_rate{{{M}}})"),
                    "Answers that begin too late, over the 1 % that may. Above 1 the error budget will not last.",
                    kind="stat",
                    limits=(1, 6),
                    width=6,
                ),
                Panel(
                    "Answers that begin too late",
                    each(f"r1:first_answer_miss:ratio_rate5m{{{M}}}"),
                    "Share over five minutes.",
                    "percentunit",
                    kind="stat",
                    limits=(0.01, 0.06),
                    width=6,
                ),
                Panel(
                    "Longest silence of a stream",
                    each(f"max by (model) (r1_stream_silence_seconds{{{M}}})"),
                    "A running choice without a token for so long.",
                    "s",
                    kind="stat",
                    limits=(30, 120),
                    width=6,
                ),
            ),
        ),
        Row(
            "Requests",
            (
                Panel(
                    "Requests by outcome",
                    (Query(rate("r1_requests_total", "outcome"), "{{outcome}}"),),
                    "What each reason asks for is in docs/metrics.md.",
                    "reqps",
                ),
                Panel(
                    "Time to the first token and to the first token of the answer",
                    (
                        *quantiles("r1_time_to_first_token_seconds", 0.5, 0.95, labels="first token "),
                        *quantiles("r1_time_to_first_answer_token_seconds", 0.5, 0.95, labels="answer "),
                    ),
                    "The gap between them is thinking.",
                    "s",
                ),
                Panel(
                    "Time between tokens",
                    quantiles("r1_inter_token_latency_seconds", 0.5, 0.95),
                    "Rises with the batch; rising alone it is a slow rank.",
                    "s",
                ),
                Panel(
                    "Queued in the router",
                    each(f"sum by (model) (r1_queued_requests{{{M}}})"),
                    "Requests waiting for their turn.",
                ),
                Panel(
                    "Saturation and forecast KV",
                    (
                        Query(f"max by (model) (r1_saturation_ratio{{{M}}})", "{{model}} saturation"),
                        Query(f"max by (model) (r1_kv_forecast_ratio{{{M}}})", "{{model}} forecast KV"),
                    ),
                    "0.8: full and nothing waits. 1: about to refuse.",
                    "percentunit",
                    limits=(0.8, 0.95),
                ),
                Panel(
                    "Migrations and lost ranks",
                    (
                        Query("sum by (outcome) (increase(r1_migrations_total[$__rate_interval]))", "{{outcome}}"),
                        Query(
                            f"max by (plan, how) (increase(r1_ranks_detached_total{{{M}}}[$__rate_interval]))",
                            "{{plan}} ranks {{how}}",
                        ),
                    ),
                    "Streams that lost their rank and went on elsewhere, and the ranks that went.",
                ),
            ),
        ),
        Row(
            "Ranks",
            (
                Panel("KV in use", rank("r1_rank_kv_usage_ratio"), "By rank.", "percentunit", limits=(0.8, 0.9)),
                Panel("Running", rank("r1_rank_running"), "Requests in each rank's batch."),
                Panel("Step", rank("r1_rank_step_seconds"), "Each rank's last engine step. One above its peers?", "s"),
                Panel(
                    "Generated tokens",
                    (
                        Query(f"r1:engine_tokens:rate5m{{{M}}}", "{{model}} engine"),
                        Query(f"r1:output_tokens:rate5m{{{M}}}", "{{model}} to clients"),
                    ),
                    "What the engines compute and what clients get; a gap is work done twice or thrown away.",
                    "tokens/s",
                ),
                Panel(
                    "Prefix cache hits",
                    each(f"r1:prefix_hits:ratio_rate5m{{{M}}}"),
                    "Share of prompt tokens found in the ranks' caches.",
                    "percentunit",
                ),
                Panel(
                    "Preemptions",
                    (
                        Query(
                            f"max by (plan, gang, rank) (deriv(r1_rank_preemptions{{{M}}}[5m]))",
                            "{{plan}} gang {{gang}} rank {{rank}}",
                        ),
                    ),
                    "Thoughts that outgrew the cache and are computed again, a second.",
                ),
                Panel(
                    "Drafts",
                    (
                        Query(engine_rate("r1_rank_draft_tokens_total"), "{{model}} drafted"),
                        Query(engine_rate("r1_rank_accepted_draft_tokens_total"), "{{model}} taken"),
                    ),
                    "What the MTP layer drafts, and what of it the model chooses, too. Far apart, drafts do not pay.",
                    "tokens/s",
                ),
            ),
        ),
    ),
    MODEL,
)
