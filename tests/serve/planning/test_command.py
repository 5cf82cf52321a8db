"""``r1 plan`` as people and scripts meet it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from r1_cluster.plan import Plan, PlanError
from r1_serve.cli import app
from typer.testing import CliRunner


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["plan", *arguments])


def ask(*arguments: str) -> str:
    result = run("--model", "r1", "--gpus", "16xH200", "--workload", "math", *arguments)
    assert result.exit_code == 0, result.exception
    return str(result.stdout)


def test_json_is_one_object_with_the_plan_and_its_numbers() -> None:
    found = json.loads(ask("--slo", "tpot_p95=50ms", "--json"))
    assert found["layout"]["tensor_parallel_size"] * found["layout"]["data_parallel_size"] in (8, 16)
    parts = found["bytes_per_gpu"]
    assert parts["total"] == sum(size for name, size in parts.items() if name != "total")
    ranks = found["layout"]["data_parallel_size"] * found["layout"]["gangs"]
    assert found["kv_tokens"] == found["kv_tokens_per_rank"] * ranks
    assert found["predicted"]["tpot_p95"] <= 0.05
    assert found["reasons"]
    assert found["front"]
    assert found["rejected"]
    fields = {name: value for name, value in found.items() if name in Plan.model_fields}
    assert Plan.model_validate_json(json.dumps(fields)).hash == found["hash"]


def test_the_page_shows_the_choice_its_rivals_budgets_and_reasons() -> None:
    page = ask("--slo", "tpot_p95=50ms", "--price-per-gpu-hour", "2.5")
    for words in ("●", "KV tokens a rank", "Why", "What was looked at", "What a budget does", "Ruled out", "cost/Mtok"):
        assert words in page
    assert "Nothing was written" in page


def test_out_writes_a_plan_that_loads(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    page = ask("--out", str(path))
    assert f"Wrote {path}" in page.replace("\n", "")
    assert Plan.load(str(path)).predicted is not None


def test_emit_prints_nothing_else() -> None:
    assert ask("--emit", "helm-values").startswith("plan:\n")
    assert ask("--emit", "vllm-command").startswith("# deepseek-r1-16xh200")


def test_a_workload_may_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\nclasses:\n- {name: a, prompt_tokens: {kind: fixed, tokens: 100},"
        " thinking_tokens: {kind: fixed, tokens: 2000}, answer_tokens: {kind: fixed, tokens: 500}}\n"
        "arrivals: {kind: poisson, rate: 2.0}\n"
    )
    given = ("--model", "r1", "--gpus", "H200", "--workload", str(file), "--slo", "tpot_p95=60ms")
    found = json.loads(run(*given, "--min-gpus", "--json").stdout)
    assert found["gpus"] == 8
    assert found["predicted"]["requests_per_second"] == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--gpus", "16xH300"), "unknown GPU 'H300'"),
        (("--model", "r2"), "--model: unknown model 'r2'"),
        (("--gpus", "8xH100"), "8 x 77.0 GB usable"),
        (("--slo", "ttfa_p95=1,ttft_p95=2"), "contradicts itself"),
        (("--slo", "ttfa_p95=1s"), "Relax --slo"),
        (("--rate", "-1"), "--rate is -1"),
        (("--price-per-gpu-hour", "nan"), "--price-per-gpu-hour is nan"),
        (("--budget", "few"), "--budget few"),
        (("--workload", "nothing"), "no workload 'nothing'"),
        (("--emit", "helm-values", "--json"), "both want stdout"),
        (("--out", "/nowhere/plan.yaml"), "cannot be written"),
    ],
)
def test_bad_input_is_one_error_and_no_plan(arguments: tuple[str, ...], named: str, tmp_path: Path) -> None:
    out = tmp_path / "plan.yaml"
    given = ("--model", "r1", "--gpus", "16xH200", "--workload", "math", "--out", str(out), *arguments)
    result = run(*given)
    assert isinstance(result.exception, PlanError | ValueError)
    assert named in str(result.exception)
    assert result.stdout == ""
    assert not out.exists()


def test_the_command_exits_with_2_and_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "r1_serve.cli", "plan", "--model", "r1", "--gpus", "8xH100", "--out", "plan.yaml"]
    result = subprocess.run(
        command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("error: deepseek-r1 does not fit 8xH100")
    assert list(tmp_path.iterdir()) == []
