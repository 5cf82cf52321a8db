"""The end-to-end schema: one measured serving run a row."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from r1_cluster.catalog import Gpu, gpu, model
from r1_cluster.perf.batch import Speculation
from r1_cluster.perf.constants import FRAMEWORKS, Constants, fitted
from r1_cluster.perf.layout import Split
from r1_cluster.perf.serving import Pools, Workload
from r1_cluster.perf.step import Engine

SPLIT = ("tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
COMMON = ("system", "backend", "mode", "isl", "osl", "conc", "gpus", "silicon_ttft_ms", "silicon_tpot_ms")
MODES = ("agg", "disagg")


class RunsError(ValueError):
    """A file of runs that cannot be used. The message names the file, the line and the column."""


@dataclass(frozen=True)
class Run:
    """One measurement. Times in seconds, ``throughput`` in output tokens/s/GPU."""

    id: str
    system: str
    backend: str
    mode: str
    gpu: Gpu
    workload: Workload
    gpus: float
    decode: Split
    decode_count: float
    prefill: Split | None
    prefill_count: float
    ttft: float
    tpot: float
    throughput: float
    speculative: bool

    @property
    def group(self) -> str:
        return f"{self.system}/{self.backend}/{self.mode}"

    @property
    def layout(self) -> str:
        """What makes two rows the same deployment."""
        pools = f"{self.prefill_count:g}x{self.prefill}+" if self.prefill else ""
        return f"{pools}{self.decode_count:g}x{self.decode}"

    def pools(self, constants: Constants | None = None) -> Pools:
        """The engines of this run. Its model is DeepSeek-R1."""
        r1, constants = model("deepseek-r1"), constants or fitted()
        drafts = Speculation(1, constants.serving.acceptance) if self.speculative else None

        def engine(split: Split) -> Engine:
            return Engine.of(r1, self.gpu, split, self.backend, constants=constants, speculation=drafts)

        decode = engine(self.decode)
        if self.prefill is None:
            return Pools(decode, self.decode_count)
        return Pools(decode, self.decode_count, engine(self.prefill), self.prefill_count)


@dataclass(frozen=True)
class _Row:
    cells: dict[str, str]
    where: str

    def fail(self, column: str, complaint: str) -> RunsError:
        return RunsError(f"{self.where}, column {column}: {complaint}")

    def text(self, column: str, allowed: tuple[str, ...] = ()) -> str:
        value = self.cells[column].strip()
        if allowed and value not in allowed:
            raise self.fail(column, f"{value!r} is not one of {', '.join(allowed)}")
        return value

    def number(self, column: str, *, least: float = 0.0, whole: bool = False) -> float:
        text = self.cells.get(column, "").strip()
        try:
            value = float(text)
        except ValueError:
            raise self.fail(column, f"{text!r} is not a number" if text else "empty, a number is needed") from None
        if not math.isfinite(value) or value < least or (least == 0 and value == 0):
            raise self.fail(column, f"{text} is out of range" + (f", at least {least:g}" if least else ""))
        if whole and value != int(value):
            raise self.fail(column, f"{text} is not a whole number")
        return value

    def count(self, column: str) -> int:
        return int(self.number(column, least=1, whole=True))

    def split(self, prefix: str = "") -> Split:
        tensor, pipeline, data, expert_tensor, expert = (self.count(prefix + name) for name in SPLIT)
        try:
            return Split(tensor=tensor, data=data, expert_tensor=expert_tensor, expert=expert, pipeline=pipeline)
        except ValueError as e:
            raise self.fail(prefix + "moe_ep_size", str(e)) from e


def read(path: str | Path) -> tuple[Run, ...]:
    """Read a CSV file of runs. Raises RunsError."""
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _parse(path.name, csv.DictReader(file, strict=True))
    except OSError as e:
        raise RunsError(f"{path}: cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise RunsError(f"{path.name}: not UTF-8 text") from e


def _parse(name: str, reader: csv.DictReader[str]) -> tuple[Run, ...]:
    runs = []
    try:
        missing = [column for column in COMMON if column not in (reader.fieldnames or ())]
        if missing:
            raise RunsError(f"{name}, line 1: no column {', '.join(missing)}")
        for cells in reader:
            where = f"{name}, line {reader.line_num}"
            if None in cells:
                raise RunsError(f"{where}: more cells than the {len(reader.fieldnames or ())} columns of line 1")
            short = [column for column, value in cells.items() if value is None]
            if short:
                raise RunsError(f"{where}, column {short[0]}: the line ends before it")
            runs.append(_run(_Row(cells, where)))
    except csv.Error as e:
        raise RunsError(f"{name}, line {reader.line_num}: {e}") from e
    if not runs:
        raise RunsError(f"{name}: no rows")
    return tuple(runs)


def _run(row: _Row) -> Run:
    try:
        card = gpu(row.text("system"))
    except ValueError as e:
        raise row.fail("system", str(e)) from e
    mode = row.text("mode", MODES)
    backend = row.text("backend", FRAMEWORKS)
    load = Workload(row.count("isl"), row.count("osl"), row.number("conc", least=1))
    gpus = row.count("gpus")
    ttft, tpot = row.number("silicon_ttft_ms") / 1e3, row.number("silicon_tpot_ms") / 1e3
    told = row.cells.get("otps_gpu", "").strip()
    through = (
        row.number("otps_gpu") if told else load.concurrency * load.output / (ttft + tpot * (load.output - 1)) / gpus
    )
    flag = row.cells.get("speculative_suspect", "").strip().lower()
    if flag not in ("", "true", "false", "0", "1"):
        raise row.fail("speculative_suspect", f"{flag!r} is not True or False")
    prefill, prefill_count = None, 0
    if mode == "agg":
        decode = row.split()
        if gpus < decode.gpus:
            raise row.fail("gpus", f"{gpus} GPUs do not hold an engine of {decode.gpus}")
        decode_count = gpus // decode.gpus  # what is left over idles, and counts in tokens/s/GPU
    else:
        prefill, decode = row.split("prefill_"), row.split("decode_")
        prefill_count, decode_count = row.count("prefill_num_workers"), row.count("decode_num_workers")
        needed = prefill.gpus * prefill_count + decode.gpus * decode_count
        if gpus < needed:
            raise row.fail("gpus", f"{gpus} GPUs, but the workers of this line hold {needed}")
    return Run(
        id=row.cells.get("id", "").strip(),
        system=row.text("system"),
        backend=backend,
        mode=mode,
        gpu=card,
        workload=load,
        gpus=gpus,
        decode=decode,
        decode_count=decode_count,
        prefill=prefill,
        prefill_count=prefill_count,
        ttft=ttft,
        tpot=tpot,
        throughput=through,
        speculative=flag in ("true", "1"),
    )
