"""What every launch says to the compiler."""

from __future__ import annotations

FUSE = {"enable_fp_fusion": True}
"""Multiply and add in one instruction. Triton 3.10 changes its default, and the committed table is made with this."""
