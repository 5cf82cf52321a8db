"""Debian's Prometheus scrapes a live fleet under load: the rules evaluate, every dashboard query returns data, vLLM's
own metrics come through Ray, and one trace holds router, rank and engine."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import httpx
import psutil
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from r1_bench.fleet import Fleet, end_with_parent, fleet
from r1_bench.topology import ask_all
from r1_cluster.plan import Plan, Predicted
from r1_serve.nano.tasks import held_out
from r1_serve.observability.dashboards import DASHBOARDS
from r1_serve.observability.look import asking, page
from r1_serve.observability.panels import Dashboard

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed: apt-get install it"),
]

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "rules.yaml"
PATIENCE_S = 60.0
# As a planner would write them: the shipped nano plans are written by hand and predict nothing.
PREDICTED = Predicted(**{name: 0.5 for name, made in Predicted.model_fields.items() if made.is_required()})
Found = TypeVar("Found")
QUESTIONS = 24
VARIABLES = {"$model": ".*", "$tenant": ".*", "$__rate_interval": "1m"}


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans it is sent: name to (trace, span, parent) ids."""

    spans: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)
    raw: bytes = b""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def Export(self, request: Any, context: Any) -> Any:
        with self.lock:
            self.raw += request.SerializeToString()
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                        self.spans.setdefault(span.name, []).append(ids)
        return trace_service_pb2.ExportTraceServiceResponse()


@dataclass(frozen=True)
class Watched:
    fleet: Fleet
    prometheus: str
    collector: Collector

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.prometheus}/api/v1/query", params={"query": expression}, trust_env=False).json()
        assert answer["status"] == "success", (expression, answer)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


def until(condition: Callable[[], Found | None], what: str) -> Found:
    """What the condition finds, once it does."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:.0f} s: {what}"
        time.sleep(0.2)
    return found


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def rays_port(pid: int) -> int | None:
    """Where this fleet's Ray exports metrics: it picks a port, and writes down which only where it has a dashboard."""
    for process in psutil.Process(pid).children(recursive=True):
        for connection in process.net_connections(kind="tcp"):
            if connection.status != psutil.CONN_LISTEN:
                continue
            try:
                text = httpx.get(f"http://127.0.0.1:{connection.laddr.port}/metrics", trust_env=False, timeout=2).text
            except httpx.HTTPError:
                continue
            if "ray_vllm_" in text:
                return int(connection.laddr.port)
    return None


def scraping(folder: Path, *ports: int) -> subprocess.Popen[bytes]:
    """Prometheus over these ports, once a second, by the shipped rules."""
    rules = re.sub(r"interval: 30s", "interval: 1s", RULES.read_text(encoding="utf-8"))
    (folder / "rules.yaml").write_text(rules, encoding="utf-8")
    targets = json.dumps([f"127.0.0.1:{port}" for port in ports[1:]])
    (folder / "prometheus.yaml").write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [rules.yaml]\n"
        f"scrape_configs: [{{job_name: r1, static_configs: [{{targets: {targets}}}]}}]\n",
        encoding="utf-8",
    )
    command = ["prometheus", f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{ports[0]}"]
    with (folder / "prometheus.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, preexec_fn=end_with_parent)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder: Path = tmp_path_factory.mktemp("watched")
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    otlp = server.add_insecure_port("127.0.0.1:0")
    server.start()
    settings = {"R1_OTLP_ENDPOINT": f"http://127.0.0.1:{otlp}", "R1_VLLM_METRICS": "true", "R1_LOG_FORMAT": "json"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        plan = Plan.load("nano-tp1").model_copy(update={"predicted": PREDICTED})
        (folder / "plan.yaml").write_text(plan.to_yaml(), encoding="utf-8")
        with fleet(str(folder / "plan.yaml"), folder) as served:
            asyncio.run(ask_all(served, ["Is 91 prime?"]))  # vLLM's metrics are there from the first step on
            rays = until(lambda: rays_port(served.pid), "Ray's metrics port")
            listen = free_port()
            process = scraping(folder, listen, served.http_port, rays)
            try:
                found = Watched(served, f"http://127.0.0.1:{listen}", collector)
                until(lambda: ready(found), (folder / "prometheus.log").read_text(errors="replace")[-500:])
                asyncio.run(ask_all(served, [problem.question for problem in held_out(QUESTIONS, 0)]))
                until(lambda: found.query("r1:output_tokens:rate5m > 0"), "a recording rule with a value")
                yield found
            finally:
                process.terminate()
                process.wait(30)
    server.stop(None)


def ready(watched: Watched) -> bool:
    try:
        return len(watched.query("up == 1")) == 2
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_every_query_of_a_dashboard_returns_data(watched: Watched, dashboard: Dashboard) -> None:
    empty = []
    for query in dashboard.queries():
        for variable, value in VARIABLES.items():
            query = query.replace(variable, value)
        if not watched.query(query):
            empty.append(query)
    assert empty == []


def test_every_panel_can_be_plotted_where_no_grafana_is(watched: Watched) -> None:
    with httpx.Client(timeout=30, trust_env=False) as http:
        text, empty = page(asking(watched.prometheus, 2, time.time(), http))
    (watched.fleet.logs / "dashboards.html").write_text(text, encoding="utf-8")
    assert empty == ["R1: fleet: Prefix cache hits"]  # MLA on CPU has no prefix cache: 0 of 0


def test_every_rule_evaluates_without_an_error_and_no_alert_fires_on_a_healthy_fleet(watched: Watched) -> None:
    groups = httpx.get(f"{watched.prometheus}/api/v1/rules", trust_env=False).json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}
    assert [rule["name"] for rule in rules if rule.get("state") == "firing"] == []


def test_vllms_metrics_come_through_ray_under_stable_names_and_agree_with_ours(watched: Watched) -> None:
    def value(expression: str) -> float:
        (sample,) = watched.query(expression)
        return float(sample["value"][1])

    # Ray passes vLLM's on every few seconds only.
    for name in ("r1_vllm:generation_tokens:rate5m", "r1_vllm:inter_token_latency_seconds:p95_5m"):
        until(lambda name=name: watched.query(f"{name} > 0"), name)  # type: ignore[misc]
    ours, vllms = "sum(r1_rank_generation_tokens_total)", "sum(ray_vllm_generation_tokens_total)"
    until(lambda: value(ours) == value(vllms), f"{ours} == {vllms}")


def test_a_request_is_one_trace_from_router_to_engine(watched: Watched) -> None:
    client = "0af7651916cd43dd8448eb211c80319c"
    secret = "xyzzy"
    asked = {"model": "r1-nano", "messages": [{"role": "user", "content": f"{secret}: is 91 prime?"}]}
    headers = {"traceparent": f"00-{client}-b7ad6b7169203331-01"}
    reply = httpx.post(
        f"{watched.fleet.url}/v1/chat/completions", json=asked, headers=headers, timeout=60, trust_env=False
    )
    assert reply.status_code == 200

    def ours(name: str) -> tuple[str, str] | None:
        with watched.collector.lock:
            found = [(span, parent) for trace, span, parent in watched.collector.spans.get(name, ()) if trace == client]
        return found[0] if found else None

    names = ("chat r1-nano", "queue", "generate", "llm_request")
    until(lambda: all(map(ours, names)), f"spans {names}")
    chat, queue, generate, engine = (ours(name) for name in names)
    assert chat is not None
    assert queue is not None
    assert generate is not None
    assert engine is not None
    assert (chat[1], queue[1], generate[1], engine[1]) == ("b7ad6b7169203331", chat[0], chat[0], generate[0])
    assert secret.encode() not in watched.collector.raw


def test_the_routers_log_is_json_with_request_ids_and_without_questions(watched: Watched) -> None:
    (log,) = watched.fleet.logs.glob("*/router.log")
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    ended = [line for line in lines if line.get("outcome") == "ok"]
    assert len(ended) >= QUESTIONS
    assert all(line["request_id"] and line["trace_id"] for line in ended)
    assert not any(problem.question in json.dumps(line) for line in lines for problem in held_out(QUESTIONS, 0))
