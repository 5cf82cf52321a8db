"""``r1 simulate`` and ``r1 capacity`` as typed: what they print, what they write, how they refuse."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from r1_serve import cli
from r1_serve.simulation.svg import plot

PLAN = """
version: r1.plan/v1
name: small
model: {name: deepseek-r1, checkpoint: deepseek-ai/DeepSeek-R1}
engine: {max_model_len: 32768, max_num_seqs: 32, max_num_batched_tokens: 8192}
fleet: {accelerator: H200}
pools: [{layout: {tensor_parallel_size: 8, expert_parallel_size: 8}}]
"""
KEYS = {
    "throughput",
    "ttft",
    "ttfa",
    "tpot",
    "goodput",
    "preemptions",
    "simulated_seconds",
    "wall_seconds",
}


@pytest.fixture
def plan(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(PLAN)
    return str(path)


@pytest.fixture
def r1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Run the command; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["r1", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        told = capsys.readouterr()
        return int(left.value.code or 0), told.out, told.err

    return run


def test_json_is_one_object_with_what_was_promised(r1: Any, plan: str) -> None:
    code, out, err = r1("simulate", "--plan", plan, "--workload", "chat", "--requests", "60", "--rate", "1", "--json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert set(told) > KEYS
    assert set(told["ttft"]) == {"mean", "p50", "p90", "p95", "p99"}
    assert told["completed"] == 60
    again = json.loads(r1("simulate", "--plan", plan, "--requests", "60", "--rate", "1", "--json")[1])
    assert {**told, "wall_seconds": 0} == {**again, "wall_seconds": 0}


def test_people_get_a_table_and_a_page_that_needs_no_network(r1: Any, plan: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    words = ("simulate", "--plan", plan, "--workload", "math", "--requests", "60", "--rate", "0.5", "--fail", "20:0:5")
    code, out, _ = r1(*words, "--report", str(folder))
    assert code == 0
    assert "TTFA" in out
    assert "moved after failures" in out
    page = (folder / "index.html").read_text()
    assert page.count("<svg") == 4
    assert not re.search(r"(src|href)=|https?://(?!www\.w3)", page)
    assert "r1 simulate --plan" in page
    assert json.loads((folder / "report.json").read_text())["history"]
    assert (folder / "report.md").read_text().startswith("# small (8 x H200, 1 x TP8xEP8) under math")


def test_a_gpu_on_which_nothing_was_measured_is_said_to_be_extrapolated(r1: Any, plan: str, tmp_path: Path) -> None:
    Path(plan).write_text(PLAN.replace("H200", "GB200"))
    few = ("--plan", plan, "--requests", "100", "--report", str(tmp_path))
    assert r1("simulate", *few, "--rate", "1")[0] == r1("capacity", *few)[0] == 0
    for name in ("index.html", "report.md", "capacity.html", "capacity.md"):
        assert "nothing was measured on GB200" in (tmp_path / name).read_text(), name


def test_drafts_make_answers_come_sooner(r1: Any, plan: str) -> None:
    words = ("simulate", "--plan", plan, "--requests", "60", "--rate", "1", "--json")
    plain, drafted = (json.loads(r1(*words, *more)[1]) for more in ((), ("--drafts", "1", "--acceptance", "0.9")))
    assert drafted["tpot"]["mean"] < 0.8 * plain["tpot"]["mean"]


def test_a_plans_own_drafts_are_simulated(r1: Any, plan: str) -> None:
    words = ("simulate", "--plan", plan, "--requests", "60", "--rate", "1", "--json")
    asked, without = (json.loads(r1(*words, "--drafts", drafts)[1]) for drafts in ("1", "0"))
    path = Path(plan)
    path.write_text(path.read_text().replace("engine: {", "engine: {num_speculative_tokens: 1, "))
    planned, off = (json.loads(r1(*words, *more)[1]) for more in ((), ("--drafts", "0")))
    assert planned["tpot"] == asked["tpot"]
    assert off["tpot"] == without["tpot"]
    assert planned["tpot"]["mean"] < off["tpot"]["mean"]


def test_pools_are_said_to_be_planned_and_not_served_yet(r1: Any, plan: str, tmp_path: Path) -> None:
    path = Path(plan)
    pool = "{name: prefill, role: prefill, layout: {tensor_parallel_size: 8}}, {name: decode, role: decode, layout"
    path.write_text(PLAN.replace("{layout", pool))
    folder = tmp_path / "out"
    _, out, _ = r1("simulate", "--plan", plan, "--requests", "40", "--rate", "1", "--report", str(folder))
    assert "not served yet" in out
    assert "not served yet" in (folder / "index.html").read_text()
    assert json.loads((folder / "report.json").read_text())["gpus"] == 16


def test_a_shipped_nano_plan_is_simulated_as_well(r1: Any) -> None:
    code, out, _ = r1("simulate", "--plan", "nano-tp1", "--workload", "math", "--requests", "20", "--json")
    assert code == 0
    assert json.loads(out)["gpus"] == 1


def test_capacity_finds_where_the_service_level_breaks_and_what_a_budget_is_worth(
    r1: Any, plan: str, tmp_path: Path
) -> None:
    words = ("capacity", "--plan", plan, "--workload", "math", "--budgets", "none,2k", "--requests", "100")
    code, out, _ = r1(*words, "--price-per-gpu-hour", "3", "--report", str(tmp_path / "c"), "--json")
    free, tight = json.loads(out)["results"]
    assert code == 0
    assert tight["max_requests_per_second"] > 1.3 * free["max_requests_per_second"] > 0
    assert tight["cost_per_answer"] < free["cost_per_answer"]
    assert (tmp_path / "c" / "capacity.html").read_text().count("<svg") == 2
    assert "| small | 8 x H200 | 2,048 |" in (tmp_path / "c" / "capacity.md").read_text()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("simulate", "--plan", "none.yaml"), "no plan 'none.yaml'"),
        (("simulate", "--plan", "PLAN", "--workload", "chess"), "no workload 'chess'"),
        (("simulate", "--plan", "PLAN", "--rate", "0"), "--rate is 0.0: give a number above 0"),
        (("simulate", "--plan", "PLAN", "--rate", "nan"), "--rate is nan"),
        (("simulate", "--plan", "PLAN", "--drafts", "1", "--acceptance", "2"), "--acceptance is 2.0"),
        (("simulate", "--plan", "nano-tp1", "--drafts", "1"), "leave --drafts out"),
        (("simulate", "--plan", "PLAN", "--slo", "speed=1"), "slo 'speed=1'"),
        (("simulate", "--plan", "PLAN", "--slo", "ttft=1,ttft=2"), "slo names ttft twice"),
        (("simulate", "--plan", "PLAN", "--routing", "luck"), "no routing policy 'luck'"),
        (("simulate", "--plan", "PLAN", "--fail", "soon"), "--fail is 'soon': give AT:GANG"),
        (("simulate", "--plan", "PLAN", "--autoscale", "4:1"), "--autoscale is '4:1': give MIN:MAX"),
        (("simulate", "--plan", "PLAN", "--fail", "5:9"), "gang 9 cannot fail"),
        (("simulate", "--plan", "PLAN", "--profile", "none.yaml"), "profile none.yaml: No such file"),
        (("simulate", "--plan", "PLAN", "--workload", "TRACE"), "line 2: not JSON"),
        (("simulate", "--plan", "PLAN", "--requests", "9", "--report", "PLAN/x"), "give a folder that can be written"),
        (("capacity", "--plan", "PLAN", "--budgets", "small"), "budget 'small': give none or tokens"),
        (("capacity", "--plan", "PLAN", "--price-per-gpu-hour", "-1"), "--price-per-gpu-hour is -1.0"),
    ],
)
def test_bad_input_is_one_clear_error_and_exit_code_2(
    r1: Any, plan: str, tmp_path: Path, words: tuple[str, ...], named: str
) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 5, "output_length": 5}\noops\n')
    code, out, err = r1(*(word.replace("PLAN", plan).replace("TRACE", str(trace)) for word in words))
    assert code == 2
    assert named in err
    assert err.count("\n") == 1
    assert out == ""


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("step_s: 1", "expected step_s, sequence_s"),
        ("{step_s: -1, sequence_s: 0, kv_token_s: 0, prompt_token_s: 0}", "step_s is -1"),
        ("{step_s: 0, sequence_s: 0, kv_token_s: 0, prompt_token_s: 0}", "a step takes time"),
        ("{", "not YAML"),
    ],
)
def test_a_faulty_profile_is_named(r1: Any, plan: str, tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    code, _, err = r1("simulate", "--plan", plan, "--profile", str(tmp_path / "p.yaml"))
    assert code == 2
    assert named in err


def test_a_plot_of_nothing_says_so_and_logarithms_leave_out_what_they_cannot_show() -> None:
    assert plot({"a": []}, x="x", y="y") == "<p>nothing to plot</p>"
    assert plot({"a": [(0.0, 1.0)]}, x="x", y="y", log_x=True) == "<p>nothing to plot</p>"
    flat = plot({"<a>": [(1.0, 5.0), (2.0, 5.0)], "b": [(1.0, 1.0)]}, x="x", y="y")
    assert "nan" not in flat
    assert "&lt;a&gt;" in flat
