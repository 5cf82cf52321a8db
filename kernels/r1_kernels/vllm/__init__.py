"""The vLLM plug-in: vLLM calls `register` in every process it starts (entry point `vllm.general_plugins`).

`R1_KERNELS=off` (the default) leaves vLLM as it is; `on` installs the experts of `experts.py` wherever they support
the layer; `verify` runs vLLM's Triton experts beside them and compares. Importing this package imports neither vLLM
nor torch.
"""

from __future__ import annotations

import logging

from r1_kernels.vllm.settings import read

logger = logging.getLogger(__name__)


def register() -> None:
    """Install what R1_KERNELS asks for; vLLM may call this repeatedly. Raises: ValueError for another value."""
    mode = read()
    if mode == "off":
        return
    from vllm.platforms import current_platform

    if not current_platform.is_cuda():
        logger.warning("R1_KERNELS=%s, but %s is no CUDA platform: vLLM keeps its own experts", mode, current_platform)
        return
    from r1_kernels.vllm.experts import experts_class
    from r1_kernels.vllm.install import install

    install(experts_class(mode))
