"""Runs only under TRITON_INTERPRET=1 (`make test-interpret`), in a process of its own: the switch is read at import."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["*"]


@pytest.fixture(autouse=True, scope="session")
def arithmetic_of_hardware() -> Iterator[None]:
    """Three faults of Triton 3.9's interpreter, mended with torch, so that what is tested is the kernels.

    Rounding to e4m3 drops the carry (127 becomes 64, not 128); rounding to BF16 truncates; a dot of BF16 multiplies
    the bit patterns as integers. Hardware rounds to nearest even and multiplies numbers.
    """
    from triton import language as tl
    from triton.runtime import interpreter

    plain_convert, plain_dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot
    narrow = {tl.float8e4nv: (torch.float8_e4m3fn, torch.uint8), tl.bfloat16: (torch.bfloat16, torch.int16)}

    def convert(values: Any, source: Any, target: Any, rounding: Any) -> Any:
        if source != tl.float32 or target not in narrow:
            return plain_convert(values, source, target, rounding)
        kind, bits = narrow[target]
        floats = torch.from_numpy(np.ascontiguousarray(values).view(np.float32))
        return floats.to(kind).view(bits).numpy().view(f"uint{8 * kind.itemsize}").reshape(values.shape)

    def widen(handle: Any) -> Any:
        kind, bits = narrow[handle.dtype.scalar]
        raw = torch.from_numpy(np.ascontiguousarray(handle.data).view(str(bits).removeprefix("torch.")))
        return raw.view(kind).float().numpy()

    def dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
        if a.dtype.scalar not in narrow:
            return plain_dot(self, a, b, d, precision, imprecise)
        return interpreter.TensorHandle(np.matmul(widen(a), widen(b)) + d.data, d.dtype.scalar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_convert_float", convert)
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
        yield
