"""Read ``vllm serve`` lines on stdin with vLLM's own parser; print what it understood, one JSON list."""

import json
import shlex
import sys
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser


def main() -> None:
    parser = FlexibleArgumentParser()
    ServeSubcommand().subparser_init(parser.add_subparsers())
    understood: list[dict[str, Any]] = []
    for line in sys.stdin:
        _, *words = shlex.split(line)
        parsed = parser.parse_args(words)
        engine = AsyncEngineArgs.from_cli_args(parsed)
        keys = (
            "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "data_parallel_size_local",
            "data_parallel_start_rank", "enable_expert_parallel", "kv_cache_dtype", "max_model_len", "max_num_seqs",
            "max_num_batched_tokens", "gpu_memory_utilization", "nnodes", "node_rank", "served_model_name",
            "reasoning_parser", "all2all_backend", "speculative_config",
        )  # fmt: skip
        facts = {key: getattr(engine, key, None) for key in keys}
        transfer = engine.kv_transfer_config
        understood.append(
            facts
            | {"model": parsed.model_tag, "headless": parsed.headless, "port": parsed.port}
            | {"kv_connector": transfer.kv_connector if transfer else None}
        )
    print(json.dumps(understood))


if __name__ == "__main__":
    main()
