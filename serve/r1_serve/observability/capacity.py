"""The fleet against what its plan predicted."""

from __future__ import annotations

from r1_serve.observability.panels import Dashboard, Panel, Query, Row, Unit
from r1_serve.observability.queries import MODEL, M, each


def _predicted(quantity: str) -> str:
    return f'max by (model, plan) (r1_plan_predicted{{{M}, quantity="{quantity}"}})'


def _against(title: str, measured: str, quantity: str, why: str, unit: Unit = "short") -> Panel:
    queries = (Query(measured, "{{model}} measured"), Query(_predicted(quantity), "{{plan}} predicted"))
    return Panel(title, queries, why, unit)


CAPACITY = Dashboard(
    "r1-capacity",
    "R1: capacity against plan",
    (
        Row(
            "Load",
            (
                Panel(
                    "Requests",
                    (
                        Query(f"r1:requests:rate5m{{{M}}}", "{{model}} measured"),
                        Query(_predicted("requests_per_second"), "{{plan}} planned for"),
                        Query(_predicted("max_requests_per_second"), "{{plan}} at most"),
                    ),
                    "The rest holds at the rate planned for; up to the most every service level is predicted to hold.",
                    "reqps",
                    width=12,
                ),
                Panel(
                    "Headroom",
                    each(f"1 - max by (model) (r1_kv_forecast_ratio{{{M}}})"),
                    "KV that no running thought is expected to need.",
                    "percentunit",
                    width=12,
                ),
            ),
        ),
        Row(
            "Speed",
            (
                _against(
                    "First token, p95",
                    f"r1:time_to_first_token:p95_5m{{{M}}}",
                    "ttft_p95",
                    "Above: prompts are longer, or prefill is slower.",
                    "s",
                ),
                _against(
                    "First token of the answer, p95",
                    f"r1:time_to_first_answer:p95_5m{{{M}}}",
                    "ttfa_p95",
                    "Above with the others as planned: thoughts are longer.",
                    "s",
                ),
                _against(
                    "Time between tokens, mean",
                    f"r1:inter_token_latency:mean5m{{{M}}}",
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
                    f"r1:output_tokens:rate5m{{{M}}}",
                    "output_tokens_per_second",
                    "Of the whole plan.",
                    "tokens/s",
                ),
                _against("Running requests", f"r1:running_requests{{{M}}}", "running_requests", "In all batches."),
                _against(
                    "KV in use", f"r1:kv_usage:mean{{{M}}}", "kv_used", "On average over the ranks.", "percentunit"
                ),
                _against(
                    "Thoughts cut at their budget",
                    f'r1:thoughts_closed:ratio_rate30m{{{M}, cause="budget"}}',
                    "thoughts_cut",
                    "Share of choices.",
                    "percentunit",
                ),
                Panel(
                    "Ranks",
                    (
                        Query(f"r1:ranks_ready:max{{{M}}}", "{{model}} ready"),
                        Query(f"max by (model, plan) (r1_plan_ranks{{{M}}})", "{{plan}} planned"),
                    ),
                    "More than planned: autoscaling has added gangs.",
                ),
            ),
        ),
    ),
    MODEL,
)
