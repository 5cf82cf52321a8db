"""The end-to-end schema: what is read, what is refused, what is reported, and how far off the model is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from r1_cluster.perf.runs import RunsError, read
from r1_cluster.perf.validate import QUEUE_BOUND_TTFT, Report, predict, validate

OPEN_RUNS = Path(__file__).parents[4] / "shared/data/perf/r1_end_to_end.csv"
HEADER = (
    "id,system,backend,mode,isl,osl,conc,gpus,prefill_tp_size,prefill_pp_size,prefill_attention_dp_size,"
    "prefill_moe_tp_size,prefill_moe_ep_size,prefill_num_workers,decode_tp_size,decode_pp_size,"
    "decode_attention_dp_size,decode_moe_tp_size,decode_moe_ep_size,decode_num_workers,tp_size,pp_size,"
    "attention_dp_size,moe_tp_size,moe_ep_size,silicon_ttft_ms,silicon_tpot_ms,otps_gpu,speculative_suspect"
)
AGG = "a,h200_sxm,sglang,agg,1024,1024,16.0,8.0,,,,,,,,,,,,,8.0,1.0,1.0,8.0,1.0,300,16,110,False"
DISAGG = "d,h200_sxm,trtllm,disagg,8192,1024,64,24,8,1,1,1,8,1,1,1,8,1,8,2,,,,,,4000,25,80,True"


def file(tmp_path: Path, *lines: str, header: str = HEADER) -> Path:
    path = tmp_path / "runs.csv"
    path.write_text("\n".join((header, *lines)) + "\n", encoding="utf-8")
    return path


def test_a_unified_and_a_separate_run_are_read(tmp_path: Path) -> None:
    one, two = read(file(tmp_path, AGG, DISAGG))
    assert (one.group, one.layout, one.decode_count, one.prefill) == ("h200_sxm/sglang/agg", "1xTP8", 1, None)
    assert (two.group, two.layout, two.gpus) == ("h200_sxm/trtllm/disagg", "1xTP8xEP8+2xTP1xDP8xEP8", 24)
    assert (one.ttft, one.tpot, one.throughput) == (0.3, 0.016, 110)
    assert not one.speculative
    assert two.speculative


def test_gpus_left_over_idle_and_count(tmp_path: Path) -> None:
    [run] = read(file(tmp_path, AGG.replace("16.0,8.0,,", "16.0,12.0,,")))
    assert (run.decode_count, run.gpus) == (1, 12)


def test_throughput_is_worked_out_where_the_file_has_none(tmp_path: Path) -> None:
    [run] = read(file(tmp_path, AGG.replace(",110,", ",,")))
    assert run.throughput == pytest.approx(16 * 1024 / (0.3 + 0.016 * 1023) / 8)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (AGG.replace(",16.0,8.0", ",many,8.0"), ("line 2", "column conc", "'many' is not a number")),
        (AGG.replace("1024,1024,16.0", "1024,,16.0"), ("line 2", "column osl", "empty")),
        (AGG.replace("1024,1024,16.0", "1024,-5,16.0"), ("line 2", "column osl", "out of range")),
        (AGG.replace("1024,1024,16.0", "10.5,1024,16.0"), ("line 2", "column isl", "not a whole number")),
        (AGG.replace(",300,16,", ",nan,16,"), ("line 2", "column silicon_ttft_ms", "out of range")),
        (AGG.replace(",300,16,", ",300,0,"), ("line 2", "column silicon_tpot_ms", "out of range")),
        (AGG.replace("h200_sxm", "h300"), ("line 2", "column system", "unknown GPU 'h300'")),
        (AGG.replace("sglang", "tgi"), ("line 2", "column backend", "trtllm, sglang, vllm")),
        (AGG.replace(",agg,", ",both,"), ("line 2", "column mode", "agg, disagg")),
        (AGG.replace(",False", ",perhaps"), ("line 2", "column speculative_suspect", "'perhaps'")),
        (AGG.replace("8.0,1.0,300", "4.0,1.0,300"), ("line 2", "column moe_ep_size", "same ranks")),
        (AGG.replace("16.0,8.0,,", "16.0,4.0,,"), ("line 2", "column gpus", "engine of 8")),
        (DISAGG.replace(",64,24,", ",64,16,"), ("line 2", "column gpus", "hold 24")),
        (AGG + ",more", ("line 2", "more cells")),
        ("a,h200_sxm", ("line 2", "column backend", "ends before")),
    ],
)
def test_a_faulty_line_is_refused_by_line_and_column(tmp_path: Path, line: str, words: tuple[str, ...]) -> None:
    with pytest.raises(RunsError) as refusal:
        read(file(tmp_path, line))
    for word in ("runs.csv", *words):
        assert word in str(refusal.value)


def test_the_line_of_the_fault_is_counted_from_the_top_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(RunsError, match="line 3, column osl"):
        read(file(tmp_path, AGG, AGG.replace("1024,1024,16.0", "1024,x,16.0")))


def test_files_without_rows_columns_or_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunsError, match="no rows"):
        read(file(tmp_path))
    with pytest.raises(RunsError, match="line 1: no column mode, "):
        read(file(tmp_path, "a,h200_sxm", header="id,system,backend,isl,osl,conc,gpus"))
    with pytest.raises(RunsError, match="cannot be read: No such file"):
        read(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunsError, match="not UTF-8"):
        read(tmp_path / "bytes.csv")


def test_an_absent_pool_column_is_named(tmp_path: Path) -> None:
    header = HEADER.replace(",moe_ep_size,", ",experts,")
    with pytest.raises(RunsError, match="line 2, column moe_ep_size: empty"):
        read(file(tmp_path, AGG, header=header))


def test_suspects_are_reported_apart_and_queue_bound_rows_leave_ttft(tmp_path: Path) -> None:
    queued = AGG.replace("a,", "q,", 1).replace(",300,16,", f",{QUEUE_BOUND_TTFT * 1e3:g},16,")
    report = validate(file(tmp_path, AGG, queued, DISAGG))
    assert (report.overall.rows, report.overall.ttft_rows, report.suspects.rows) == (2, 1, 1)
    assert list(report.groups) == ["h200_sxm/sglang/agg"]
    assert report.suspects.ttft_mape is None


def test_the_report_is_one_json_object_with_the_same_numbers_by_group(tmp_path: Path) -> None:
    found = json.loads(json.dumps(validate(file(tmp_path, AGG, DISAGG)).as_dict()))
    names = {f"{what}_{how}" for what in ("tpot", "throughput", "ttft") for how in ("mape", "median_ape")} | {"rows"}
    assert names <= set(found)
    assert names <= set(found["groups"]["h200_sxm/sglang/agg"])
    assert found["rows"] == 1
    first = found["predictions"][0]
    assert first["tpot_ms"]["predicted"] / first["tpot_ms"]["measured"] - 1 == pytest.approx(first["tpot_ms"]["error"])


def test_errors_are_relative_to_the_measurement(tmp_path: Path) -> None:
    [run] = read(file(tmp_path, AGG))
    row = predict(run)
    assert row.tpot_error == pytest.approx((row.estimate.tpot - 0.016) / 0.016)
    assert Report((row,)).overall.tpot_mape == pytest.approx(abs(row.tpot_error))


@pytest.mark.skipif(not OPEN_RUNS.is_file(), reason="the open end-to-end runs are not beside the project")
def test_the_open_runs_are_met_within_the_targets() -> None:
    report = validate(OPEN_RUNS)
    overall = report.overall
    assert overall.rows == 59
    assert overall.tpot_mape is not None
    assert overall.tpot_mape <= 0.08
    assert overall.throughput_mape is not None
    assert overall.throughput_mape <= 0.09
    assert overall.ttft_median_ape is not None
    assert overall.ttft_median_ape <= 0.25
    assert report.suspects.tpot_mape is not None
    assert report.suspects.tpot_mape <= 0.15
