"""r1-nano's shape, the one place its config.json is written from."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class NanoShape:
    """Hugging Face's DeepSeek-V3 names. MLA on GPUs needs kv_lora_rank 512 and rope dim 64, so even nano has them."""

    vocab_size: int = 512
    hidden_size: int = 192
    intermediate_size: int = 512
    moe_intermediate_size: int = 64
    num_hidden_layers: int = 4
    first_k_dense_replace: int = 1
    num_attention_heads: int = 8
    num_key_value_heads: int = 8
    q_lora_rank: int = 96
    kv_lora_rank: int = 512
    qk_rope_head_dim: int = 64
    qk_nope_head_dim: int = 32
    v_head_dim: int = 32
    n_routed_experts: int = 32
    n_shared_experts: int = 1
    n_group: int = 8
    topk_group: int = 4
    num_experts_per_tok: int = 8
    routed_scaling_factor: float = 2.5
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6

    def config(self, bos: int, eos: int, pad: int) -> dict[str, object]:
        """config.json for transformers and vLLM."""
        return {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            **asdict(self),
            "norm_topk_prob": True,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "moe_layer_freq": 1,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "rope_interleave": True,
            "rope_scaling": None,
            "tie_word_embeddings": False,
            "initializer_range": 0.02,
            "pretraining_tp": 1,
            "use_cache": True,
            "torch_dtype": "bfloat16",
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": pad,
        }


NANO = NanoShape()
