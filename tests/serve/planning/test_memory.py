"""The catalog's count of r1-nano against the checkpoint itself."""

from __future__ import annotations

import math

import pytest
from r1_cluster.catalog import MODELS
from r1_serve.nano import weights_path


def test_the_catalog_counts_every_parameter_of_r1_nano_s_files() -> None:
    safetensors = pytest.importorskip("safetensors")

    def stored(file: str) -> int:
        with safetensors.safe_open(weights_path() / file, "numpy") as tensors:
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118

    nano = MODELS["r1-nano"]
    assert nano.weight_bytes == 4 * stored("model.safetensors")
    assert nano.mtp_bytes == 4 * stored("mtp.safetensors")
