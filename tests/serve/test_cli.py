"""The ``r1`` command: quick to answer, and one line for every refusal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from r1_cluster.plan import Plan, shipped


def r1(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "r1_serve.cli", *arguments]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("R1_", "RAY_"))}
    return subprocess.run(
        command, cwd=cwd, env=inherited | environment, capture_output=True, text=True, timeout=60, check=False
    )


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def test_help_lists_the_commands_without_importing_what_is_heavy() -> None:
    code = (
        "import sys; sys.argv = ['r1', '--help']\n"
        "from r1_serve.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'ray', 'torch', 'vllm', 'grpc', 'starlette', 'transformers'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    for command in ("plans", "plan-check", "router", "rehearse", "serve", "ask", "validate", "plan"):
        assert f"  {command} " in result.stdout


def test_plans_lists_every_shipped_plan_with_its_layout() -> None:
    result = r1("plans")
    assert result.returncode == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(shipped())
    assert "TP2xDP2xEP4" in result.stdout


def test_plan_check_prints_the_plan_whole_as_yaml_that_loads_again(tmp_path: Path) -> None:
    result = r1("plan-check", "nano-tp2-ep2")
    assert result.returncode == 0
    again = tmp_path / "again.yaml"
    again.write_text(result.stdout, encoding="utf-8")
    assert Plan.load(str(again)) == Plan.load("nano-tp2-ep2")


def test_an_unknown_plan_is_one_line_that_names_the_shipped_ones() -> None:
    refused(r1("plan-check", "nano-tp9"), "nano-tp9", "nano-tp1")


def test_a_faulty_plan_is_one_line_that_names_the_file_and_the_field(tmp_path: Path) -> None:
    plan = tmp_path / "mine.yaml"
    plan.write_text(Plan.load("nano-tp1").to_yaml().replace("max_num_seqs: 64", "max_num_seqs: many"), encoding="utf-8")
    refused(r1("plan-check", str(plan)), "mine.yaml", "engine.max_num_seqs")


def test_a_bad_setting_of_the_environment_is_one_line_that_names_the_variable(tmp_path: Path) -> None:
    refused(r1("rehearse", cwd=tmp_path, R1_HTTP_PORT="eighty"), "R1_HTTP_PORT")


def test_a_ray_address_in_the_environment_stops_a_rehearsal_with_one_error_line(tmp_path: Path) -> None:
    result = r1("rehearse", cwd=tmp_path, RAY_ADDRESS="head:6379")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: RAY_ADDRESS is head:6379")
    assert result.stdout == ""


def test_asking_where_nothing_listens_is_one_line_that_says_how_to_start() -> None:
    refused(r1("ask", "Is 91 prime?", "--url", "http://127.0.0.1:1"), "http://127.0.0.1:1", "make serve")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "auto"])
def test_serving_without_a_ray_cluster_is_one_error_line(tmp_path: Path, address: str) -> None:
    # The variable says what auto means: without it Ray takes any that runs on this machine.
    result = r1("serve", "nano-tp1", "--address", address, RAY_ADDRESS="127.0.0.1:1", TMPDIR=str(tmp_path))
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: no Ray cluster")
    assert "at 127.0.0.1:1" in result.stderr


RUNS = """id,system,backend,mode,isl,osl,conc,gpus,tp_size,pp_size,attention_dp_size,moe_tp_size,moe_ep_size,\
silicon_ttft_ms,silicon_tpot_ms
a,h200_sxm,sglang,agg,1024,1024,16,8,8,1,1,8,1,300,16
"""


def test_validate_prints_each_run_and_its_error_or_one_json_object(tmp_path: Path) -> None:
    runs = tmp_path / "runs.csv"
    runs.write_text(RUNS, encoding="utf-8")
    shown = r1("validate", "--runs", str(runs))
    assert shown.returncode == 0, shown.stderr
    assert "h200_sxm/sglang/agg" in shown.stdout
    found = json.loads(r1("validate", "--runs", str(runs), "--json").stdout)
    assert found["rows"] == 1
    assert found["tpot_mape"] == abs(found["predictions"][0]["tpot_ms"]["error"])


def test_a_malformed_run_is_one_line_that_names_the_line_and_the_column(tmp_path: Path) -> None:
    runs = tmp_path / "runs.csv"
    runs.write_text(RUNS.replace(",300,16", ",soon,16"), encoding="utf-8")
    refused(r1("validate", "--runs", str(runs), "--json"), "runs.csv, line 2, column silicon_ttft_ms", "soon")
    refused(r1("validate", "--runs", str(tmp_path / "none.csv")), "none.csv", "cannot be read")


def test_a_bug_is_one_line_with_the_log_that_holds_the_rest(tmp_path: Path) -> None:
    code = "from r1_serve import cli\ndef app(): raise KeyError('boom')\ncli.app = app\ncli.main()\n"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("error: this is a bug: KeyError: 'boom'")
    assert "Traceback" in (tmp_path / ".r1/logs/bug.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [("rehearse", "--threads", "0"), ("nothing",), ("ask",)])
def test_wrong_usage_exits_with_2_and_no_traceback(arguments: tuple[str, ...]) -> None:
    result = r1(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
