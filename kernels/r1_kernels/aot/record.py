"""What serving would compile: run the operators on meta tensors with Triton's launches caught before they compile."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.driver import driver

ARCHS = {
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@dataclass(frozen=True)
class Specialisation:
    """One kernel as one call would compile it. `name` is stable: the kernel, its constants, warps and stages."""

    name: str
    arch: str
    source: ASTSource = field(compare=False, hash=False)
    options: dict[str, int] = field(compare=False, hash=False)

    def compile(self) -> Any:
        """Triton's compiled kernel: .asm and .metadata."""
        return triton.compile(self.source, target=ARCHS[self.arch], options=self.options)


class _Nowhere:
    """A driver with no device: it tells the JIT the target to specialise for, and nothing can be launched on it."""

    def __init__(self, arch: str) -> None:
        self.arch = arch

    def get_current_device(self) -> str:
        return self.arch  # the JIT's caches are keyed by it

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return ARCHS[self.arch]


@contextmanager
def recording(arch: str) -> Iterator[list[Specialisation]]:
    """Within it, a launch compiles and launches nothing, and adds to the list what it would have compiled."""
    found: list[Specialisation] = []

    def caught(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        kernel = fn.jit_function
        options = {"num_warps": compile["num_warps"], "num_stages": compile["num_stages"], "enable_fp_fusion": True}
        names = kernel.arg_names
        constants = {names[at[0]]: value for at, value in compile["constants"].items()}
        shown = {name: value for name, value in constants.items() if name.isupper() and name != "EVEN"}
        # The rest of what a specialisation depends on: argument types, absent tensors, divisibility by 16.
        detail = repr((sorted(compile["signature"].items()), sorted(constants.items(), key=str), compile["configs"]))
        label = ",".join(f"{name}={int(value)}" for name, value in shown.items())
        tag = hashlib.sha256(detail.encode()).hexdigest()[:6]
        source = ASTSource(kernel, compile["signature"], compile["constants"], compile["configs"][0])
        warps = f"warps={options['num_warps']},stages={options['num_stages']}"
        found.append(Specialisation(f"{kernel.__name__}[{label};{warps}]#{tag}", arch, source, options))
        return True

    before, hook = driver.active if driver._active else None, triton.knobs.runtime.jit_cache_hook
    driver.set_active(_Nowhere(arch))
    triton.knobs.runtime.jit_cache_hook = caught
    try:
        yield found
    finally:
        triton.knobs.runtime.jit_cache_hook = hook
        driver._active = before


def record(arch: str, calls: list[Callable[[], object]]) -> list[Specialisation]:
    """What `calls` would compile for `arch`, each once, in order."""
    with recording(arch) as found:
        for call in calls:
            call()
    return list({entry.name: entry for entry in found}.values())
