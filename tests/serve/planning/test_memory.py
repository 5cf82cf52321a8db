"""The catalog's count of r1-nano against the checkpoint itself."""

from __future__ import annotations

import math

import pytest
from r1_cluster.catalog import MODELS
from r1_serve.nano import weights_path


def test_the_catalog_counts_every_parameter_of_r1_nano_s_files() -> None:
    safetensors = pytest.importorskip("safetensors")
    stored = 0
    for file in weights_path().glob("*.safetensors"):
        with safetensors.safe_open(file, "numpy") as tensors:
            stored += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    assert MODELS["r1-nano"].weight_bytes == 4 * stored
