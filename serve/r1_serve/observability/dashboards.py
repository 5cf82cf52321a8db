"""The four dashboards. ``$model`` and ``$tenant`` are picked above them; meanings: docs/metrics.md."""

from __future__ import annotations

from r1_serve.observability.panels import Dashboard, Panel, Query, Row, Unit

_M = 'model=~"$model"'
_MODEL = {"model": ("r1_ranks_ready", "model")}


def _rate(metric: str, by: str = "model", more: str = "") -> str:
    """Summed over routers."""
    return f"sum by ({by}) (rate({metric}{{{_M}{more}}}[$__rate_interval]))"


def _quantiles(metric: str, *quantiles: float, labels: str = "{{model}} ") -> tuple[Query, ...]:
    buckets = _rate(f"{metric}_bucket", "model, le")
    return tuple(Query(f"histogram_quantile({q:g}, {buckets})", f"{labels}p{100 * q:g}") for q in quantiles)


def _rank(metric: str) -> tuple[Query, ...]:
    """One router's view: a gang's number is each router's own."""
    return (Query(f"{metric}{{{_M}}}", "{{plan}} gang {{gang}} rank {{rank}}"),)


def _each(expr: str) -> tuple[Query, ...]:
    return (Query(expr, "{{model}}"),)


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
                        Query(f"max by (model) (r1_ranks_ready{{{_M}}})", "{{model}} ready"),
                        Query(f"max by (model, plan) (r1_plan_ranks{{{_M}}})", "{{plan}} planned"),
                    ),
                    "Ranks of whole gangs that take new requests, and how many the plans ask for.",
                    kind="stat",
                    width=6,
                ),
                Panel(
                    "Service level: burn rate",
                    _each(f"max by (model) (r1_slo_burn_rate{{{_M}}})"),
                    "Answers that begin too late, over the 1 % that may. Above 1 the error budget will not last.",
                    kind="stat",
                    limits=(1, 6),
                    width=6,
                ),
                Panel(
                    "Answers that begin too late",
                    _each(f"r1:first_answer_miss:ratio_rate5m{{{_M}}}"),
                    "Share over five minutes.",
                    "percentunit",
                    kind="stat",
                    limits=(0.01, 0.06),
                    width=6,
                ),
                Panel(
                    "Longest silence of a stream",
                    _each(f"max by (model) (r1_stream_silence_seconds{{{_M}}})"),
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
                    (Query(_rate("r1_requests_total", "outcome"), "{{outcome}}"),),
                    "What each reason asks for is in docs/metrics.md.",
                    "reqps",
                ),
                Panel(
                    "Time to the first token and to the first token of the answer",
                    (
                        *_quantiles("r1_time_to_first_token_seconds", 0.5, 0.95, labels="first token "),
                        *_quantiles("r1_time_to_first_answer_token_seconds", 0.5, 0.95, labels="answer "),
                    ),
                    "The gap between them is thinking.",
                    "s",
                ),
                Panel(
                    "Time between tokens",
                    _quantiles("r1_inter_token_latency_seconds", 0.5, 0.95),
                    "Rises with the batch; rising alone it is a slow rank.",
                    "s",
                ),
                Panel(
                    "Queued in the router",
                    _each(f"sum by (model) (r1_queued_requests{{{_M}}})"),
                    "Requests waiting for their turn.",
                ),
                Panel(
                    "Saturation and forecast KV",
                    (
                        Query(f"max by (model) (r1_saturation_ratio{{{_M}}})", "{{model}} saturation"),
                        Query(f"max by (model) (r1_kv_forecast_ratio{{{_M}}})", "{{model}} forecast KV"),
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
                            f"max by (plan, how) (increase(r1_ranks_detached_total{{{_M}}}[$__rate_interval]))",
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
                Panel("KV in use", _rank("r1_rank_kv_usage_ratio"), "By rank.", "percentunit", limits=(0.8, 0.9)),
                Panel("Running", _rank("r1_rank_running"), "Requests in each rank's batch."),
                Panel("Step", _rank("r1_rank_step_seconds"), "Each rank's last engine step. One above its peers?", "s"),
                Panel(
                    "Generated tokens",
                    (
                        Query(f"r1:engine_tokens:rate5m{{{_M}}}", "{{model}} engine"),
                        Query(f"r1:output_tokens:rate5m{{{_M}}}", "{{model}} to clients"),
                    ),
                    "What the engines compute and what clients get; a gap is work done twice or thrown away.",
                    "tokens/s",
                ),
                Panel(
                    "Prefix cache hits",
                    _each(f"r1:prefix_hits:ratio_rate5m{{{_M}}}"),
                    "Share of prompt tokens found in the ranks' caches.",
                    "percentunit",
                ),
                Panel(
                    "Preemptions",
                    (Query(f"deriv(r1_rank_preemptions{{{_M}}}[5m])", "{{plan}} gang {{gang}} rank {{rank}}"),),
                    "Thoughts that outgrew the cache and are computed again, a second.",
                ),
            ),
        ),
    ),
    _MODEL,
)

THINKING = Dashboard(
    "r1-thinking",
    "R1: thinking",
    (
        Row(
            "How long",
            (
                Panel(
                    "Tokens of a thought",
                    _quantiles("r1_thought_tokens", 0.5, 0.9, 0.99),
                    "Completed choices. The tail is what plans and budgets are made for.",
                ),
                Panel(
                    "Tokens of a thought, all of them",
                    (Query(f"sum by (le) (increase(r1_thought_tokens_bucket{{{_M}}}[$__rate_interval]))", "{{le}}"),),
                    "Two humps are two kinds of questions.",
                    kind="heatmap",
                ),
                Panel(
                    "Seconds of thinking",
                    _quantiles("r1_thinking_seconds", 0.5, 0.95),
                    "With unchanged token counts: steps are slower.",
                    "s",
                ),
            ),
        ),
        Row(
            "How it ends",
            (
                Panel(
                    "Thoughts by how they went",
                    (Query(_rate("r1_thoughts_total", "thought"), "{{thought}}"),),
                    "unterminated: max_tokens ate the answer.",
                    "reqps",
                ),
                Panel(
                    "Closed by the router",
                    (Query(f"r1:thoughts_closed:ratio_rate30m{{{_M}}}", "{{model}} {{cause}}"),),
                    "Share of choices whose thought was cut at its budget or out of a loop.",
                    "percentunit",
                    limits=(0.1, 0.2),
                ),
                Panel(
                    "Finish reasons",
                    (Query(_rate("r1_choices_total", "finish_reason"), "{{finish_reason}}"),),
                    "Many length: max_tokens is too small.",
                    "reqps",
                ),
            ),
        ),
        Row(
            "What it costs",
            (
                Panel(
                    "Tokens",
                    (
                        Query(_rate("r1_reasoning_tokens_total"), "{{model}} thinking"),
                        Query(_rate("r1_answer_tokens_total"), "{{model}} answer"),
                        Query(_rate("r1_prompt_tokens_total"), "{{model}} prompt"),
                    ),
                    "A second.",
                    "tokens/s",
                    width=12,
                ),
                Panel(
                    "Share of thinking",
                    _each(f"r1:reasoning_share:ratio_rate5m{{{_M}}}"),
                    "Of all tokens that clients were sent.",
                    "percentunit",
                    width=12,
                ),
            ),
        ),
    ),
    _MODEL,
)

_T = ', tenant=~"$tenant"'


def _tenants(metric: str) -> tuple[Query, ...]:
    return (Query(_rate(metric, "tenant", _T), "{{tenant}}"),)


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
                            f"sum by (tenant) (r1:tenant_output_tokens:rate5m{{{_M}{_T}}})"
                            f" / ignoring (tenant) group_left () sum (r1:tenant_output_tokens:rate5m{{{_M}}})",
                            "{{tenant}}",
                        ),
                    ),
                    "Of all tokens sent. Under load fairness holds it to the weights of the tenants file.",
                    "percentunit",
                ),
                Panel(
                    "Share of thinking",
                    (Query(f"r1:tenant_reasoning_share:ratio_rate1h{{{_M}{_T}}}", "{{tenant}}"),),
                    "Near 1: pays for thoughts and gets next to no answers.",
                    "percentunit",
                    limits=(0.95, 0.97),
                ),
                Panel(
                    "Prompt tokens found in a cache",
                    (
                        Query(
                            f"{_rate('r1_cached_prompt_tokens_total', 'tenant', _T)}"
                            f" / {_rate('r1_prompt_tokens_total', 'tenant', _T)}",
                            "{{tenant}}",
                        ),
                    ),
                    "Conversations that go on have much; caches are never shared between tenants.",
                    "percentunit",
                ),
            ),
        ),
    ),
    {**_MODEL, "tenant": ("r1_prompt_tokens_total", "tenant")},
)


def _against(title: str, measured: str, quantity: str, why: str, unit: Unit = "short") -> Panel:
    predicted = f'max by (model, plan) (r1_plan_predicted{{{_M}, quantity="{quantity}"}})'
    return Panel(title, (Query(measured, "{{model}} measured"), Query(predicted, "{{plan}} predicted")), why, unit)


CAPACITY = Dashboard(
    "r1-capacity",
    "R1: capacity against plan",
    (
        Row(
            "Load",
            (
                _against(
                    "Requests",
                    f"r1:requests:rate5m{{{_M}}}",
                    "requests_per_second",
                    "The rest of the plan holds at the predicted rate; above it expect worse.",
                    "reqps",
                ),
                _against(
                    "Most requests the plan takes",
                    f"r1:requests:rate5m{{{_M}}}",
                    "max_requests_per_second",
                    "The rate up to which every service level was predicted to hold.",
                    "reqps",
                ),
                Panel(
                    "Headroom",
                    _each(f"1 - max by (model) (r1_kv_forecast_ratio{{{_M}}})"),
                    "KV that no running thought is expected to need.",
                    "percentunit",
                ),
            ),
        ),
        Row(
            "Speed",
            (
                _against(
                    "First token, p95",
                    f"r1:time_to_first_token:p95_5m{{{_M}}}",
                    "ttft_p95",
                    "Above: prompts are longer, or prefill is slower.",
                    "s",
                ),
                _against(
                    "First token of the answer, p95",
                    f"r1:time_to_first_answer:p95_5m{{{_M}}}",
                    "ttfa_p95",
                    "Above with the others as planned: thoughts are longer.",
                    "s",
                ),
                _against(
                    "Time between tokens, mean",
                    f"r1:inter_token_latency:mean5m{{{_M}}}",
                    "tpot_mean",
                    "Above at the planned batch: the steps are slower than the model of the hardware.",
                    "s",
                ),
            ),
        ),
        Row(
            "Use",
            (
                _against(
                    "Output tokens",
                    f"r1:output_tokens:rate5m{{{_M}}}",
                    "output_tokens_per_second",
                    "Of the whole plan.",
                    "tokens/s",
                ),
                _against("Running requests", f"r1:running_requests{{{_M}}}", "running_requests", "In all batches."),
                _against(
                    "KV in use", f"r1:kv_usage:mean{{{_M}}}", "kv_used", "On average over the ranks.", "percentunit"
                ),
                _against(
                    "Thoughts cut at their budget",
                    f'r1:thoughts_closed:ratio_rate30m{{{_M}, cause="budget"}}',
                    "thoughts_cut",
                    "Share of choices.",
                    "percentunit",
                ),
                Panel(
                    "Ranks",
                    (
                        Query(f"r1:ranks_ready:max{{{_M}}}", "{{model}} ready"),
                        Query(f"max by (model, plan) (r1_plan_ranks{{{_M}}})", "{{plan}} planned"),
                    ),
                    "More than planned: autoscaling has added gangs.",
                ),
            ),
        ),
    ),
    _MODEL,
)

DASHBOARDS = (FLEET, THINKING, TENANTS, CAPACITY)
