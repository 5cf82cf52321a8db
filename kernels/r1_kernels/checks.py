"""Checks of an operator's inputs: a ValueError with the shape and the expectation, before anything is launched."""

from __future__ import annotations

import torch

ALIGNMENT = 16
"""Bytes: the widest load of a GPU. A tensor that starts between two of them would be read wrongly or slowly."""


def tensor(
    name: str,
    value: torch.Tensor,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int | None, ...],
    *,
    like: torch.Tensor | None = None,
) -> None:
    """Check one tensor: its type, its shape (None: any length), that it is contiguous, aligned and on `like`'s device.

    Raises: ValueError, saying what came and what is expected.
    """
    if value.dtype not in dtypes:
        raise ValueError(f"{name}: expected {' or '.join(map(str, dtypes))}, got {value.dtype}")
    wanted = "[" + ", ".join("*" if n is None else str(n) for n in shape) + "]"
    if value.ndim != len(shape) or any(n not in (None, got) for n, got in zip(shape, value.shape, strict=True)):
        raise ValueError(f"{name}: expected shape {wanted}, got {list(value.shape)}")
    if not value.is_contiguous():
        raise ValueError(
            f"{name}: expected a contiguous tensor {wanted}, got strides {value.stride()}; call .contiguous()"
        )
    if value.numel() and value.data_ptr() % ALIGNMENT:
        raise ValueError(f"{name}: expected data at a multiple of {ALIGNMENT} bytes; call .clone()")
    if like is not None and value.device != like.device:
        raise ValueError(f"{name}: expected device {like.device}, got {value.device}")


def multiple(name: str, value: int, of: int) -> None:
    """Raises: ValueError unless `value` is a positive multiple of `of`."""
    if value <= 0 or value % of:
        raise ValueError(f"{name}: expected a multiple of {of}, got {value}")
