"""Ask vLLM which platform it chose, and what that does to an engine's configuration."""

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from r1_serve import rehearsal
from r1_serve.rehearsal import collectives, experts, rotary, sequence_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform

# The shape the platform looks at, and nothing it would have to load.
CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 64, "hidden_size": 64,
    "intermediate_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "q_lora_rank": 32, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 32,
    "v_head_dim": 32, "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 2,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "max_position_embeddings": 256, "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
}  # fmt: skip

DENSE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 64,
    "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}  # fmt: skip


def configured(shape: dict[str, Any]) -> Any:
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(shape), encoding="utf-8")
        return EngineArgs(
            model=folder, skip_tokenizer_init=True, dtype="float32", max_model_len=256,
            **rehearsal.engine_arguments(kv_cache_gib=0.5),
        ).create_engine_config()  # fmt: skip


lone_token_misread = sequence_parallel.needed()  # before vLLM loads its plug-ins
torch.cpu._is_amx_tile_supported = lambda: True  # a server CPU, where vLLM would choose a bfloat16 backend
config = configured(CONFIG)

warnings: list[str] = []
handler = logging.Handler()
handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
rehearsal.logger.addHandler(handler)
still_needed = [piece.__name__ for piece in (collectives, experts, rotary, sequence_parallel) if piece.needed()]
rotary._embedding = lambda: object()  # a vLLM without the class's method
rehearsal.register()

print(
    json.dumps(
        {
            "platform": f"{type(current_platform).__module__}.{type(current_platform).__name__}",
            "ray_device_key": current_platform.ray_device_key,
            "is_cpu": current_platform.is_cpu(),
            "attention": config.attention_config.backend.name,
            "executor": config.parallel_config.distributed_executor_backend,
            "kv_cache_memory_bytes": config.cache_config.kv_cache_memory_bytes,
            "block_size": config.cache_config.block_size,
            "dense_block_size": configured(DENSE).cache_config.block_size,
            "helpers_compiled_by": current_platform.simple_compile_backend,
            "lone_token_misread": lone_token_misread,
            "still_needed": still_needed,
            "warnings": warnings,
        }
    )
)
