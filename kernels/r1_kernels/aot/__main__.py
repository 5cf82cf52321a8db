"""`make kernels-aot`: compile every kernel and tile choice, hold the result against aot/table.json.

Fails (exit code 1) on a spill, on a GEMM without the architecture's tensor-core instructions, on more registers or
shared memory than the table says, and on a kernel the table does not have: `--write` writes the table anew. gfx942 is
best effort: what fails there is listed and fails nothing. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from dataclasses import asdict
from pathlib import Path

import triton

from r1_kernels.aot.cases import calls
from r1_kernels.aot.inspect import Facts, facts
from r1_kernels.aot.record import ARCHS, Specialisation, record

TABLE = Path(__file__).with_name("table.json")
REQUIRED = ("sm_90", "sm_100")
Table = dict[str, dict[str, dict[str, int]]]
_work: list[Specialisation] = []  # inherited by the forked workers: sources cannot be pickled


def compile_one(index: int) -> tuple[str, str, Facts | str]:
    """Compile one entry: (arch, name, facts or what went wrong)."""
    entry = _work[index]
    try:
        return entry.arch, entry.name, facts(entry.compile(), entry.arch)
    except Exception as error:  # the compiler raises many kinds; each is a row of the report
        return entry.arch, entry.name, f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}"


def complaints(arch: str, name: str, now: Facts | str, table: Table) -> list[str]:
    """What is wrong with one kernel, in words."""
    if isinstance(now, str):
        return [f"does not compile: {now}"]
    found = []
    if now.spills:
        found.append(f"{now.spills} spill instructions")
    if is_gemm(name) and not now.tensor_core:
        found.append("no tensor-core instruction of this architecture")
    before = table.get(arch, {}).get(name)
    if before is None:
        return [*found, "not in the table; look at it, then --write"]
    for what in ("registers", "shared_bytes"):
        if asdict(now)[what] > before[what]:
            found.append(f"{what} {before[what]} -> {asdict(now)[what]}")
    return found


def is_gemm(name: str) -> bool:
    """Whether a kernel is one of the grouped GEMMs."""
    return name.startswith(("gate_up", "down"))


def main() -> int:
    """Run; the process's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--arch", nargs="+", choices=ARCHS, default=list(REQUIRED), help="default: sm_90 sm_100")
    parser.add_argument("--write", action="store_true", help="write the table anew from this run")
    parser.add_argument("--jobs", type=int, default=2, help="processes that compile (default 2)")
    args = parser.parse_args()
    for arch in args.arch:
        _work.extend(record(arch, calls()))
    with multiprocessing.get_context("fork").Pool(args.jobs) as pool:
        results = pool.map(compile_one, range(len(_work)), chunksize=1)
    table: Table = json.loads(TABLE.read_text())["kernels"] if TABLE.is_file() else {}
    fresh: Table = {arch: {} for arch in args.arch}
    for arch, name, now in results:
        if isinstance(now, Facts):
            fresh[arch][name] = asdict(now)
    if args.write:
        table |= fresh
        whole = {"triton": triton.__version__, "kernels": {arch: dict(sorted(table[arch].items())) for arch in table}}
        TABLE.write_text(json.dumps(whole, indent=1) + "\n")
    bad = 0
    for arch, name, now in results:
        for complaint in complaints(arch, name, now, table):
            bad += arch in REQUIRED
            print(f"{arch} {name}: {complaint}")
    ok = all(isinstance(now, Facts) and now.tensor_core for _, name, now in results if is_gemm(name))
    spills = sum(now.spills for _, _, now in results if isinstance(now, Facts))
    print(
        json.dumps({"kernels": len(results), "archs": args.arch, "spills": spills, "tensor_core_ok": ok, "failed": bad})
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
