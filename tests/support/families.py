"""Tiny random teachers of many families, as ordinary Hugging Face folders, with the features that set them apart.

Weights are large enough for each feature to show in the logits: norms differ from one, biases from zero, soft caps
bend, windows are shorter than the sequences, and multipliers are far from one.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

VOCAB_SIZE = 320
MAX_TOKENS = 64
WINDOW = 16  # of sliding attention: shorter than the sequences
LAYERS = [1, 2, 4]  # whose states are compared; the last one's attention, too
GAIN = {"Qwen3.5": 1.0, "Qwen3.5-MoE": 1.0, "DeepSeek-V3": 1.0}  # of weights; float32 noise grows with it
BFLOAT16_IN_VLLM = ("Qwen3.5", "Qwen3.5-MoE")  # kernels on CPUs take no other dtype

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
NO_HEAD_DIM = {key: value for key, value in SHAPE.items() if key != "head_dim"} | {"num_attention_heads": 2}
TIED = {"tie_word_embeddings": True}
ALTERNATING = ["sliding_attention", "full_attention"] * 2
HYBRID = ["linear_attention", "full_attention"] * 2
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 32, "num_experts_per_tok": 2, "norm_topk_prob": True}
LINEAR: dict[str, Any] = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,  # vLLM's kernels on CPUs take no other
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
PARTIAL_ROPE = PLAIN_ROPE | {"partial_rotary_factor": 0.5}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 64,
}
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "depth": 1, "out_hidden_size": 64}


def _qwen3_5_text(**changes: Any) -> dict[str, Any]:
    rope = PARTIAL_ROPE | {"mrope_interleaved": True, "mrope_section": [3, 3, 2]}
    return SHAPE | LINEAR | {"layer_types": HYBRID, "rope_parameters": rope} | changes


def _deepseek() -> hf.PreTrainedConfig:
    return hf.DeepseekV3Config(
        **SHAPE | {"num_key_value_heads": 4, "head_dim": 64},
        **EXPERTS | {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "num_nextn_predict_layers": 0},
        q_lora_rank=24,
        kv_lora_rank=512,  # this and the next as in the real model: kernels take no other
        qk_rope_head_dim=64,
        qk_nope_head_dim=128,
        v_head_dim=128,
        n_routed_experts=8,
        n_shared_experts=1,
        n_group=4,
        topk_group=2,
        first_k_dense_replace=1,
        routed_scaling_factor=2.5,
    )


def _gemma3_text() -> dict[str, Any]:
    return SHAPE | {"layer_types": ALTERNATING, "sliding_window": WINDOW, "query_pre_attn_scalar": 24}


def _gemma4_text() -> dict[str, Any]:
    return (
        SHAPE
        | TIED
        | {
            "layer_types": ALTERNATING,
            "sliding_window": WINDOW,
            "global_head_dim": 64,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": VOCAB_SIZE,
            "final_logit_softcapping": 5.0,
        }
    )


def _deepseek_v4() -> hf.PreTrainedConfig:
    """Hyper-connections: each layer returns four residual streams."""
    return hf.DeepseekV4Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        head_dim=64,
        q_lora_rank=24,
        o_lora_rank=24,
        o_groups=2,
        index_n_heads=2,
        index_head_dim=64,
        moe_intermediate_size=32,
        n_routed_experts=8,
        num_experts_per_tok=2,
        num_nextn_predict_layers=0,
    )


FAMILIES: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "Llama": lambda: hf.LlamaConfig(**SHAPE, attention_bias=True),
    "Mistral": lambda: hf.MistralConfig(**SHAPE, sliding_window=WINDOW),
    "Qwen2": lambda: hf.Qwen2Config(**NO_HEAD_DIM | TIED),
    "Qwen3": lambda: hf.Qwen3Config(**SHAPE),
    "Qwen3-MoE": lambda: hf.Qwen3MoeConfig(**SHAPE, **EXPERTS, num_experts=8),
    "Qwen3.5": lambda: hf.Qwen3_5Config(text_config=_qwen3_5_text(), vision_config=VISION, tie_word_embeddings=False),
    "Qwen3.5-MoE": lambda: hf.Qwen3_5MoeConfig(
        text_config=_qwen3_5_text(**EXPERTS, num_experts=8, shared_expert_intermediate_size=32),
        vision_config=VISION,
        tie_word_embeddings=False,
    ),
    "Qwen2-VL": lambda: hf.Qwen2VLConfig(
        text_config=NO_HEAD_DIM | {"rope_parameters": PLAIN_ROPE | {"mrope_section": [4, 6, 6]}},
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
        tie_word_embeddings=False,
    ),
    "Qwen2.5-VL": lambda: hf.Qwen2_5_VLConfig(
        text_config=NO_HEAD_DIM | {"rope_parameters": PLAIN_ROPE | {"mrope_section": [4, 6, 6]}},
        vision_config=VISION | {"fullatt_block_indexes": [0]},
        tie_word_embeddings=False,
    ),
    "Qwen3-VL": lambda: hf.Qwen3VLConfig(
        text_config=SHAPE | {"rope_parameters": PLAIN_ROPE | {"mrope_section": [6, 5, 5]}},
        vision_config=VISION | {"deepstack_visual_indexes": [0]},
        tie_word_embeddings=False,
    ),
    "Gemma-2": lambda: hf.Gemma2Config(
        **SHAPE | TIED,
        layer_types=ALTERNATING,
        sliding_window=WINDOW,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=5.0,
        query_pre_attn_scalar=24,
    ),
    "Gemma-3": lambda: hf.Gemma3TextConfig(**_gemma3_text() | TIED),
    "Gemma-3 (multimodal)": lambda: hf.Gemma3Config(
        text_config=_gemma3_text(),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
        tie_word_embeddings=True,
    ),
    "Gemma-3n": lambda: hf.Gemma3nTextConfig(
        **SHAPE | TIED,
        layer_types=ALTERNATING,
        sliding_window=WINDOW,
        vocab_size_per_layer_input=VOCAB_SIZE,
        hidden_size_per_layer_input=16,
        laurel_rank=8,
        num_kv_shared_layers=0,
        activation_sparsity_pattern=[0.0] * 4,
    ),
    "Gemma-4 (multimodal)": lambda: hf.Gemma4Config(
        text_config=_gemma4_text(),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "position_embedding_size": 16,
        },
        audio_config=None,
        tie_word_embeddings=True,
    ),
    "Phi-3": lambda: hf.Phi3Config(
        **NO_HEAD_DIM | {"partial_rotary_factor": 0.5}, original_max_position_embeddings=256, sliding_window=None
    ),
    "Phi-2": lambda: hf.PhiConfig(**NO_HEAD_DIM, rope_parameters=PARTIAL_ROPE),
    "GPT-OSS": lambda: hf.GptOssConfig(
        **SHAPE,
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=ALTERNATING,
        sliding_window=WINDOW,
        rope_parameters=YARN,
    ),
    "Granite": lambda: hf.GraniteConfig(
        **NO_HEAD_DIM,
        embedding_multiplier=3.0,
        residual_multiplier=0.4,
        attention_multiplier=0.1,
        logits_scaling=4.0,
    ),
    "Cohere": lambda: hf.CohereConfig(**NO_HEAD_DIM | TIED, logit_scale=0.25, use_qk_norm=True),
    "Cohere-2": lambda: hf.Cohere2Config(
        **SHAPE | TIED, logit_scale=0.25, layer_types=ALTERNATING, sliding_window=WINDOW
    ),
    "DeepSeek-V3": _deepseek,
    "DeepSeek-V4": _deepseek_v4,
    "GLM-4-MoE": lambda: hf.Glm4MoeConfig(
        **SHAPE,
        **EXPERTS,
        n_routed_experts=8,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        routed_scaling_factor=1.5,
        use_qk_norm=True,
        rope_parameters=PARTIAL_ROPE,
    ),
    "OLMo-2": lambda: hf.Olmo2Config(**NO_HEAD_DIM),
    "GPT-NeoX": lambda: hf.GPTNeoXConfig(
        **NO_HEAD_DIM,
        use_parallel_residual=True,
        rope_parameters=PARTIAL_ROPE,
    ),
    "GPT-2": lambda: hf.GPT2Config(
        vocab_size=VOCAB_SIZE, n_positions=256, n_embd=64, n_layer=4, n_head=2, bos_token_id=None, eos_token_id=0
    ),
    "Falcon": lambda: hf.FalconConfig(**NO_HEAD_DIM, new_decoder_architecture=False, multi_query=True, alibi=False),
    "Falcon-H1": lambda: hf.FalconH1Config(
        **NO_HEAD_DIM,
        mamba_d_ssm=64,
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_d_state=16,
        mamba_n_groups=1,
        mamba_chunk_size=16,
        lm_head_multiplier=0.5,
        embedding_multiplier=2.0,
        ssm_multipliers=[0.5, 0.7, 0.9, 1.1, 0.8],
        key_multiplier=0.5,
        attention_out_multiplier=0.7,
    ),
}


def write_family(name: str, folder: Path, seed: int = 0) -> Path:
    """A random teacher of the family, without a tokenizer."""
    config = FAMILIES[name]()
    torch.manual_seed(seed)
    architecture = _architecture(config)
    model = architecture(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            _randomise(parameter_name, parameter, GAIN.get(name, 1.5))
    model.save_pretrained(folder)
    return folder


def _architecture(config: hf.PreTrainedConfig) -> Any:
    """The class that the hub's folders of the family name: the multimodal one where there is one."""
    kind = type(config)
    multimodal = hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return multimodal[kind] if kind in multimodal else hf.MODEL_FOR_CAUSAL_LM_MAPPING[kind]


def _randomise(name: str, parameter: torch.Tensor, gain: float) -> None:
    if any(part in name for part in ("A_log", "dt_bias", ".D")):
        return
    if parameter.ndim == 1:
        parameter.add_(torch.randn_like(parameter), alpha=0.3)
    elif "embed" in name or "lm_head" in name or "wte" in name:
        parameter.normal_(std=0.4)
    else:
        parameter.normal_(std=gain * parameter.shape[-1] ** -0.5)
