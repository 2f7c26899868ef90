"""Random small mixtures of experts of transformers' classes; see random_hf.py."""

import random
from typing import Any

from random_hf import llama_like, windows


def experts(rng: random.Random, most: int = 6) -> dict[str, Any]:
    n = rng.randint(2, most)
    return {"num_experts": n, "num_experts_per_tok": rng.randint(1, n), "norm_topk_prob": rng.random() < 0.5}


def dense_layers(rng: random.Random, n_layer: int) -> dict[str, Any]:
    """The first few dense, or experts in every so many-th layer."""
    if rng.random() < 0.5:
        return {"mlp_only_layers": list(range(rng.randint(0, n_layer - 1)))}
    return {"decoder_sparse_step": rng.randint(1, n_layer)}


def mixtral(rng: random.Random) -> dict[str, Any]:
    chosen = experts(rng)
    return {
        **llama_like(rng),
        "num_local_experts": chosen["num_experts"],
        "num_experts_per_tok": chosen["num_experts_per_tok"],
        "sliding_window": rng.choice([None, 1, 5]),
        "hidden_act": rng.choice(["silu", "gelu"]),
    }


def qwen3_moe(rng: random.Random) -> dict[str, Any]:
    sizes = llama_like(rng)
    return {
        **sizes,
        **experts(rng),
        **dense_layers(rng, sizes["num_hidden_layers"]),
        "moe_intermediate_size": rng.randint(3, 30),
        "attention_bias": rng.random() < 0.3,
        "use_sliding_window": rng.random() < 0.3,
        "sliding_window": 5,
    }


def qwen2_moe(rng: random.Random) -> dict[str, Any]:
    sizes = llama_like(rng)
    inner = rng.randint(3, 30)
    windowed = rng.random() < 0.5
    return {
        **sizes,
        **experts(rng),
        **dense_layers(rng, sizes["num_hidden_layers"]),
        **(windows(rng, sizes["num_hidden_layers"]) if windowed else {}),
        "moe_intermediate_size": inner,
        "shared_expert_intermediate_size": inner * rng.randint(1, 3),
        "qkv_bias": rng.random() < 0.7,
        "use_sliding_window": windowed,
    }


def olmoe(rng: random.Random) -> dict[str, Any]:
    sizes = llama_like(rng)
    sizes["hidden_size"] = sizes["num_attention_heads"] * sizes.pop("head_dim")
    return {**sizes, **experts(rng), "attention_bias": rng.random() < 0.3}


def sigmoid(rng: random.Random, n_layer: int) -> dict[str, Any]:
    chosen = experts(rng)
    return {
        "n_routed_experts": chosen["num_experts"],
        "num_experts_per_tok": chosen["num_experts_per_tok"],
        "norm_topk_prob": chosen["norm_topk_prob"],
        "n_shared_experts": rng.randint(1, 2),
        "moe_intermediate_size": rng.randint(3, 30),
        "routed_scaling_factor": rng.choice([1.0, 2.5]),
        "first_k_dense_replace": rng.randint(0, n_layer - 1),
        "n_group": 1,
        "topk_group": 1,
    }


def dots1(rng: random.Random) -> dict[str, Any]:
    sizes = llama_like(rng)
    n_layer = sizes["num_hidden_layers"]
    windowed = windows(rng, n_layer) if rng.random() < 0.5 else {"sliding_window": None}
    return {**sizes, **sigmoid(rng, n_layer), **windowed, "attention_bias": rng.random() < 0.3}


def glm4_moe(rng: random.Random) -> dict[str, Any]:
    sizes = llama_like(rng)
    sizes["head_dim"] *= 2
    sizes["rope_parameters"]["partial_rotary_factor"] = rng.choice([0.5, 1.0])
    bias, norm = rng.random() < 0.5, rng.random() < 0.5
    return {**sizes, **sigmoid(rng, sizes["num_hidden_layers"]), "attention_bias": bias, "use_qk_norm": norm}


def latent(rng: random.Random) -> dict[str, Any]:
    sizes = llama_like(rng)
    del sizes["head_dim"]
    sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    if sizes["rope_parameters"]["rope_type"] == "yarn" and rng.random() < 0.7:
        sizes["rope_parameters"] |= {"mscale": 0.7, "mscale_all_dim": rng.choice([0.7, 1.0])}
    return {
        **sizes,
        "q_lora_rank": rng.choice([None, 5, 12]),
        "kv_lora_rank": rng.randint(3, 12),
        "qk_nope_head_dim": rng.randint(1, 9),
        "qk_rope_head_dim": 2 * rng.randint(2, 5),
        "v_head_dim": rng.randint(1, 9),
        "attention_bias": rng.random() < 0.3,
    }


def deepseek_v3(rng: random.Random) -> dict[str, Any]:
    sizes = latent(rng)
    return {**sizes, **sigmoid(rng, sizes["num_hidden_layers"])}


def deepseek_v2(rng: random.Random) -> dict[str, Any]:
    sizes = latent(rng)
    sizes |= {key: 2 * sizes[key] for key in ("kv_lora_rank", "qk_nope_head_dim")}  # the class cannot do odd ones
    return {**sizes, **sigmoid(rng, sizes["num_hidden_layers"]), "norm_topk_prob": False, "topk_method": "greedy"}


KINDS = {
    "mixtral": mixtral,
    "qwen3_moe": qwen3_moe,
    "qwen2_moe": qwen2_moe,
    "olmoe": olmoe,
    "dots1": dots1,
    "glm4_moe": glm4_moe,
    "deepseek_v3": deepseek_v3,
    "deepseek_v2": deepseek_v2,
}
"""A random configuration of each family with experts, by model type."""
