"""Workloads: shipped, from YAML, fitted to traces; and what is said of files that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from r1_cluster.workload import Trace, Workload, WorkloadError, load, shipped
from r1_cluster.workload.fit import fit
from r1_cluster.workload.load import parse
from r1_cluster.workload.traces import Record, read

DATA = Path(__file__).parents[3] / ".." / "shared" / "data" / "traces"


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_workload_is_what_its_samples_are_and_survives_yaml(name: str) -> None:
    workload = load(name)
    drawn = next(workload.draw(np.random.default_rng(2), 50_000))
    assert workload.prompt_mean() == pytest.approx(drawn.prompt.mean(), rel=0.03)
    assert workload.output_mean() == pytest.approx((drawn.thinking + drawn.answer).mean(), rel=0.03)
    assert parse(workload.to_yaml()) == workload
    assert parse(workload.to_yaml()).hash == workload.hash
    assert sum(workload.shares) == pytest.approx(1.0)
    assert np.bincount(drawn.kind) / 50_000 == pytest.approx(workload.shares, abs=0.01)


def test_the_shipped_olympiad_thinks_as_long_as_r1_is_reported_to() -> None:
    olympiad = load("math").classes[1]
    assert olympiad.thinking_tokens.mean() == pytest.approx(12_000, rel=0.02)


def test_a_budget_shortens_every_class_and_never_lengthens() -> None:
    workload = load("math")
    assert workload.budgeted(4096).output_mean() == workload.output_mean(4096) < workload.output_mean()
    assert workload.budgeted(4096).budgeted(8192) == workload.budgeted(4096)
    assert workload.budgeted(None) is workload
    assert load("chat").at_rate(9.0).arrivals.rate == 9.0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("median: 600", "median: -1"), "classes.0.prompt_tokens.lognormal.median: Input should be greater than 0"),
        (("kind: poisson", "kind: hourly"), "arrivals: Input tag 'hourly'"),
        (("name: later", "name: first"), "names must differ"),
        (("weight: 2", 'weight: "2"'), "classes.1.weight"),
        (("prefix_share: 0.8", "prefix: 0.8"), "classes.1.prefix: Extra inputs"),
        (("classes:", "classes: ["), "not YAML"),
    ],
)
def test_a_fault_in_a_workload_is_named(change: tuple[str, str], named: str, tmp_path: Path) -> None:
    text = (Path(load.__code__.co_filename).parent / "mixes" / "chat.yaml").read_text().replace(*change)
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(WorkloadError) as refused:
        load(str(path))
    assert str(refused.value).startswith(f"{path}: ")
    assert named in str(refused.value)


def test_an_unknown_workload_is_told_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="no workload 'chess': shipped are agent, chat, math, or give"):
        load("chess")
    with pytest.raises(WorkloadError, match="No such file"):
        load(str(tmp_path / "none.yaml"))
    with pytest.raises(WorkloadError, match="No such file"):
        load(str(tmp_path / "none.jsonl"))


MOONCAKE = '{"timestamp": 1500, "input_length": 1100, "output_length": 7, "hash_ids": [1, 2, 3]}\n'
OURS = '{"at": 2.5, "prompt_tokens": 10, "reasoning_tokens": 5, "answer_tokens": 2, "tenant": "acme"}\n'
LOG = (
    '{"time": "2026-11-24T10:00:05.250Z", "level": "info", "message": "request r1: ok", "prompt_tokens": 10, '
    '"reasoning_tokens": 5, "answer_tokens": 2, "outcome": "worker_lost", "seconds": 1.25}\n'
)
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:47.1,1,0\n"


def records(tmp_path: Path, name: str, text: str) -> list[Record]:
    (tmp_path / name).write_text(text)
    return list(read(tmp_path / name))


def test_every_format_is_read(tmp_path: Path) -> None:
    assert records(tmp_path, "m.jsonl", MOONCAKE) == [Record(1.5, 1100, 7, blocks=(1, 2, 3))]
    assert records(tmp_path, "o.jsonl", OURS + "\n") == [Record(2.5, 10, 2, 5, "acme")]
    assert records(tmp_path, "r.log", '{"message": "attached", "time": "x"}\n' + LOG) == [
        Record(1795514404.0, 10, 2, 5, finished=False)
    ]
    first, second = records(tmp_path, "a.csv", AZURE)
    assert (first.prompt_tokens, first.answer_tokens) == (374, 44)
    assert second.at - first.at == pytest.approx(0.41941)


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("a.jsonl", MOONCAKE + '{"timestamp": 1}', "line 2: not a request"),
        ("a.jsonl", MOONCAKE + "oops", "line 2: not JSON"),
        ("a.jsonl", "[1]", "line 1: expected a JSON object, got list"),
        ("a.jsonl", MOONCAKE + MOONCAKE.replace("1100", "-1"), "line 2: input_length: expected an integer from 1"),
        ("a.jsonl", MOONCAKE.replace("1500", "NaN"), "line 1: timestamp: expected a number from 0, got nan"),
        ("a.jsonl", MOONCAKE.replace("[1, 2, 3]", '["x"]'), "line 1: hash_ids"),
        ("a.jsonl", OURS + OURS.replace("5", '"5"'), "line 2"),
        ("a.jsonl", LOG.replace("2026-11-24T10", "noon"), "line 1: time: expected a date and time"),
        ("a.csv", AZURE + "2023-11-16 18:15:48,,4\n", "line 4: ContextTokens: expected an integer from 1, got ''"),
        ("a.csv", AZURE + "yesterday,3,4\n", "line 4: TIMESTAMP: expected a date and time, got 'yesterday'"),
        ("a.csv", AZURE + "2023-11-16 18:15:48\n", "line 4: ContextTokens"),
        ("a.csv", "time,tokens\n1,2\n", "line 1: no column ContextTokens"),
        ("a.csv", "", "no column"),
        ("a.jsonl", MOONCAKE, "1 requests at one time"),
        ("a.jsonl", "", "0 requests"),
    ],
)
def test_a_malformed_trace_is_one_error_with_the_line(tmp_path: Path, name: str, text: str, named: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(WorkloadError) as refused:
        load(str(path))
    assert named in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_binary_file_is_no_trace(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WorkloadError, match="not UTF-8"):
        load(str(tmp_path / "a.jsonl"))


def test_a_fit_knows_tenants_times_and_shared_prefixes() -> None:
    asked = [
        Record(10.0, 1024, 5, 100, "acme", blocks=(1, 2)),
        Record(11.0, 1024, 5, 300, "acme", blocks=(1, 3)),
        Record(14.0, 512, 9, 50, "other", blocks=(4,)),
    ]
    workload = fit(asked)
    assert workload.arrivals == Trace(at=(0.0, 1.0, 4.0))
    assert [(c.name, c.tenant, c.weight) for c in workload.classes] == [("acme", "acme", 2.0), ("other", "other", 1.0)]
    assert workload.classes[0].prefix_share == pytest.approx(512 / 2560)
    assert workload.classes[0].thinking_tokens.mean() == pytest.approx(200)


def test_thoughts_that_were_cut_off_do_not_teach_that_thoughts_are_short() -> None:
    rng = np.random.default_rng(4)
    thoughts = np.exp(rng.normal(np.log(2000), 0.8, 3000)).astype(int)
    cut = [
        Record(float(i), 10, 5, min(int(t), int(limit)), finished=bool(t <= limit))
        for i, (t, limit) in enumerate(zip(thoughts, rng.uniform(500, 20_000, 3000), strict=True))
    ]
    fitted = fit(cut).classes[0].thinking_tokens
    assert fitted.quantile(0.5) == pytest.approx(np.median(thoughts), rel=0.08)
    naive = np.mean([record.thinking_tokens for record in cut])
    assert fitted.mean() == pytest.approx(thoughts.mean(), rel=0.08)
    assert naive < 0.9 * thoughts.mean()


@pytest.mark.parametrize("name", ["mooncake_conversation.jsonl", "azure_2023_conversation.csv"])
def test_public_traces_are_fitted(name: str) -> None:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no {path}: public traces are not part of the repository")
    workload = load(str(path))
    lengths = [record.prompt_tokens for record in read(path)]
    assert workload.prompt_mean() == pytest.approx(np.mean(lengths), rel=0.03)
    assert workload.arrivals.rate is not None
    assert Workload.model_validate_json(json.dumps(workload.model_dump(mode="json"))) == workload
