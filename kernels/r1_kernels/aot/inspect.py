"""What a compiled kernel costs and uses, read from its machine code with the tools Triton brings."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TENSOR_CORE = {
    "sm_90": ("HGMMA", "QGMMA"),  # wgmma, of 16-bit types and of FP8
    "sm_100": ("UTCHMMA", "UTCQMMA"),  # tcgen05.mma
    "gfx942": ("v_mfma",),
}


@dataclass(frozen=True)
class Facts:
    """registers a thread; spills: instructions that store to or load from the stack; shared memory in bytes (static
    and dynamic); tensor_core: instructions of the architecture's newest kind; older_core: of the kind before."""

    registers: int
    spills: int
    shared_bytes: int
    tensor_core: int
    older_core: int


def facts(kernel: Any, arch: str) -> Facts:
    """Read one compiled kernel."""
    shared = int(kernel.metadata.shared)
    if arch.startswith("gfx"):
        text = kernel.asm["amdgcn"]
        spills = sum(int(n) for n in re.findall(r"\.[vs]gpr_spill_count:\s+(\d+)", text))
        registers = int(_only(r"\.vgpr_count:\s+(\d+)", text))
        return Facts(registers, spills, shared, len(re.findall(r"\bv_mfma", text)), 0)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        registers = int(_only(r"REG:(\d+)", _tool("cuobjdump", "--dump-resource-usage", file.name)))
        code = Counter(
            re.findall(
                r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", _tool("nvdisasm", "-c", file.name), re.M
            )
        )
    newest = sum(code[name] for name in TENSOR_CORE[arch])
    return Facts(registers, code["STL"] + code["LDL"], shared, newest, code["HMMA"] + code["QMMA"])


def _tool(name: str, *args: str) -> str:
    return subprocess.run([TOOLS / name, *args], check=True, capture_output=True, text=True).stdout  # noqa: S603


def _only(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"the compiler's output has no {pattern}; Triton {triton.__version__} has changed its form")
    return found.group(1)
