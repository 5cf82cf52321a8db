"""How long the models think, how it ends and what it costs."""

from __future__ import annotations

from r1_serve.observability.panels import Dashboard, Panel, Query, Row
from r1_serve.observability.queries import MODEL, M, each, quantiles, rate

THINKING = Dashboard(
    "r1-thinking",
    "R1: thinking",
    (
        Row(
            "How long",
            (
                Panel(
                    "Tokens of a thought",
                    quantiles("r1_thought_tokens", 0.5, 0.9, 0.99),
                    "Completed choices. The tail is what plans and budgets are made for.",
                ),
                Panel(
                    "Tokens of a thought, all of them",
                    (Query(f"sum by (le) (increase(r1_thought_tokens_bucket{{{M}}}[$__rate_interval]))", "{{le}}"),),
                    "Two humps are two kinds of questions.",
                    kind="heatmap",
                ),
                Panel(
                    "Seconds of thinking",
                    quantiles("r1_thinking_seconds", 0.5, 0.95),
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
                    (Query(rate("r1_thoughts_total", "thought"), "{{thought}}"),),
                    "unterminated: max_tokens ate the answer.",
                    "reqps",
                ),
                Panel(
                    "Closed by the router",
                    (Query(f"r1:thoughts_closed:ratio_rate30m{{{M}}}", "{{model}} {{cause}}"),),
                    "Share of choices whose thought was cut at its budget or out of a loop.",
                    "percentunit",
                    limits=(0.1, 0.2),
                ),
                Panel(
                    "Finish reasons",
                    (Query(rate("r1_choices_total", "finish_reason"), "{{finish_reason}}"),),
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
                        Query(rate("r1_reasoning_tokens_total"), "{{model}} thinking"),
                        Query(rate("r1_answer_tokens_total"), "{{model}} answer"),
                        Query(rate("r1_prompt_tokens_total"), "{{model}} prompt"),
                    ),
                    "A second.",
                    "tokens/s",
                    width=12,
                ),
                Panel(
                    "Share of thinking",
                    each(f"r1:reasoning_share:ratio_rate5m{{{M}}}"),
                    "Of all tokens that clients were sent.",
                    "percentunit",
                    width=12,
                ),
            ),
        ),
    ),
    MODEL,
)
