"""The page of plots that stands in for Grafana."""

from __future__ import annotations

from typing import Any

import httpx
from r1_serve.observability.dashboards import DASHBOARDS
from r1_serve.observability.look import asking, page
from r1_serve.observability.panels import Dashboard, Panel, Query, Row

ONE = Dashboard("d", "D & co", (Row("R", (Panel("Rate", (Query("sum(a)", "{{model}} a"),), "why"),)),))


def prometheus(asked: list[dict[str, str]], *values: list[Any]) -> httpx.Client:
    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(dict(request.url.params))
        result = [{"metric": {"model": "m"}, "values": list(values)}] if values else []
        return httpx.Response(200, json={"status": "success", "data": {"result": result}})

    return httpx.Client(transport=httpx.MockTransport(answer))


def test_a_series_is_a_named_line_and_what_is_no_number_is_left_out() -> None:
    asked: list[dict[str, str]] = []
    with prometheus(asked, [940, "1"], [950, "NaN"], [960, "3"]) as http:
        text, empty = page(asking("http://p", 1, 1000.0, http), [ONE])
    assert empty == []
    assert asked == [{"query": "sum(a)", "start": "940.0", "end": "1000.0", "step": "1.0"}]
    assert text.count("<polyline") == 1
    assert len(text.split('points="')[1].split('"')[0].split()) == 2
    assert "D &amp; co" in text


def test_a_panel_without_data_is_named() -> None:
    with prometheus([]) as http:
        assert page(asking("http://p", 1, 1000.0, http), [ONE])[1] == ["D & co: Rate"]


def test_every_variable_of_the_dashboards_gets_a_value() -> None:
    asked: list[dict[str, str]] = []
    with prometheus(asked, [1000, "1"]) as http:
        text, empty = page(asking("http://p", 60, 1000.0, http))
    assert empty == []
    assert len(asked) == sum(len(dashboard.queries()) for dashboard in DASHBOARDS)
    assert not any("$" in each["query"] for each in asked)
    assert text.count("<figure>") == sum(len(row.panels) for dashboard in DASHBOARDS for row in dashboard.rows)
