"""Recording finds what serving would compile, without a device; the check names what got worse."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from r1_kernels.aot.__main__ import REQUIRED, TABLE, complaints, is_gemm
from r1_kernels.aot.cases import calls
from r1_kernels.aot.inspect import Facts, facts
from r1_kernels.aot.record import record

GOOD = Facts(registers=100, spills=0, shared_bytes=1000, tensor_core=8, older_core=0)
NAME = "gate_up_sorted_kernel[x]#1"


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, dict[str, int]]]:
    found: dict[str, dict[str, dict[str, int]]] = json.loads(TABLE.read_text())["kernels"]
    return found


@pytest.mark.parametrize("arch", REQUIRED)
def test_the_committed_table_has_every_kernel_serving_would_compile(
    arch: str, table: dict[str, dict[str, dict[str, int]]]
) -> None:
    assert {entry.name for entry in record(arch, calls())} == set(table[arch])


@pytest.mark.parametrize("arch", REQUIRED)
def test_no_kernel_in_the_table_spills_and_every_gemm_uses_the_newest_tensor_core(
    arch: str, table: dict[str, dict[str, dict[str, int]]]
) -> None:
    rows = table[arch]
    assert all(row["spills"] == 0 for row in rows.values())
    assert all(row["tensor_core"] > 0 for name, row in rows.items() if is_gemm(name))


def test_a_kernel_compiles_without_a_gpu_and_is_read_from_its_machine_code() -> None:
    entry = record("sm_90", calls()[:1])[0]
    found = facts(entry.compile(), "sm_90")
    assert 16 <= found.registers <= 255
    assert found.tensor_core == 0


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (GOOD, []),
        (replace(GOOD, registers=90), []),
        (replace(GOOD, registers=120), ["registers 100 -> 120"]),
        (replace(GOOD, shared_bytes=2000), ["shared_bytes 1000 -> 2000"]),
        (replace(GOOD, spills=3), ["3 spill instructions"]),
        (replace(GOOD, tensor_core=0), ["no tensor-core instruction of this architecture"]),
        ("CompilationError: no", ["does not compile: CompilationError: no"]),
    ],
)
def test_a_regression_is_named(now: Facts | str, said: list[str]) -> None:
    assert complaints("sm_90", NAME, now, {"sm_90": {NAME: asdict(GOOD)}}) == said


def test_a_kernel_the_table_does_not_know_fails() -> None:
    assert complaints("sm_90", NAME, GOOD, {}) == ["not in the table; look at it, then --write"]
