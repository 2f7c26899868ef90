"""Random small models of transformers' classes, written as folders: the other side of the tests of families."""

import contextlib
import io
import random
from pathlib import Path
from typing import Any

import torch

VOCABULARY, CONTEXT = 61, 48


def llama_like(rng: random.Random, heads: tuple[int, ...] = (1, 2, 3, 4), divide: bool = True) -> dict[str, Any]:
    """Sizes as most classes name them, odd ones included."""
    n_head = rng.choice(heads)
    n_kv_head = rng.choice([k for k in range(1, n_head + 1) if n_head % k == 0])
    head_dim = 2 * rng.randint(2, 9)
    width = n_head * rng.randint(3, 11) if divide else rng.randint(9, 40)
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "intermediate_size": rng.randint(5, 50),
        "num_hidden_layers": rng.randint(1, 4),
        "num_attention_heads": n_head,
        "num_key_value_heads": n_kv_head,
        "head_dim": head_dim,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": rng.random() < 0.5,
        **rope(rng),
    }


def rope(rng: random.Random, more: dict[str, Any] | None = None) -> dict[str, Any]:
    """`rope_parameters` of every kind that minigpt knows."""
    theta = rng.choice([100.0, 10000.0, 500000.0])
    kinds: list[dict[str, Any]] = [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": rng.choice([2.0, 3.5])},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12},
        {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 16, "beta_fast": 8.0, "beta_slow": 0.5,
         "attention_factor": 1.3},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 20},
    ]  # fmt: skip
    return {"rope_parameters": {**rng.choice(kinds), "rope_theta": theta, **(more or {})}}


def windows(rng: random.Random, n_layer: int) -> dict[str, Any]:
    """Layers of both kinds, in any order."""
    kinds = [rng.choice(["sliding_attention", "full_attention"]) for _ in range(n_layer)]
    return {"layer_types": kinds, "sliding_window": rng.choice([1, 3, 7, 20])}


def own_heads(sizes: dict[str, Any]) -> dict[str, Any]:
    """For classes whose heads are as wide as the model allows: so that half of a head is even too."""
    sizes["hidden_size"] = sizes["num_attention_heads"] * 4 * max(2, sizes["hidden_size"] // 8)
    return {key: value for key, value in sizes.items() if key != "head_dim"}


def gpt2(rng: random.Random) -> dict[str, Any]:
    n_head = rng.choice([1, 2, 3, 5])
    return {
        "vocab_size": VOCABULARY,
        "n_positions": CONTEXT,
        "n_embd": n_head * rng.randint(3, 10),
        "n_layer": rng.randint(1, 4),
        "n_head": n_head,
        "n_inner": rng.choice([None, 17, 40]),
        "activation_function": rng.choice(["gelu_new", "gelu", "relu", "gelu_pytorch_tanh"]),
        "layer_norm_epsilon": rng.choice([1e-5, 1e-3]),
        "scale_attn_weights": rng.random() < 0.7,
        "tie_word_embeddings": rng.random() < 0.7,
    }


def llama(rng: random.Random) -> dict[str, Any]:
    act = rng.choice(["silu", "gelu", "gelu_pytorch_tanh"])
    return {**llama_like(rng), "hidden_act": act, "attention_bias": rng.random() < 0.3, "mlp_bias": rng.random() < 0.3}


def mistral(rng: random.Random) -> dict[str, Any]:
    return {**llama_like(rng, divide=False), "sliding_window": rng.choice([None, 1, 5, 60])}


def qwen2(rng: random.Random) -> dict[str, Any]:
    sizes = llama_like(rng, divide=False)
    windowed = rng.random() < 0.5
    return sizes | (windows(rng, sizes["num_hidden_layers"]) if windowed else {}) | {"use_sliding_window": windowed}


def qwen3(rng: random.Random) -> dict[str, Any]:
    return {**qwen2(rng), "attention_bias": rng.random() < 0.3}


def olmo(rng: random.Random) -> dict[str, Any]:
    return {**llama_like(rng, divide=False), "attention_bias": rng.random() < 0.3}


def olmo3(rng: random.Random) -> dict[str, Any]:
    sizes = olmo(rng)
    return sizes | windows(rng, sizes["num_hidden_layers"]) | layered(rng, sizes)


def layered(rng: random.Random, sizes: dict[str, Any]) -> dict[str, Any]:
    local = {"rope_type": "default", "rope_theta": rng.choice([100.0, 10000.0])}
    return {"rope_parameters": {"full_attention": sizes["rope_parameters"], "sliding_attention": local}}


def exaone4(rng: random.Random) -> dict[str, Any]:
    sizes = llama_like(rng, divide=False)
    kinds = ["full_attention"] * sizes["num_hidden_layers"]
    return {**sizes, "sliding_window": None, "sliding_window_pattern": None, "layer_types": kinds}


def granite(rng: random.Random) -> dict[str, Any]:
    names = ("embedding_multiplier", "residual_multiplier", "logits_scaling", "attention_multiplier")
    return {**llama(rng), **{name: rng.uniform(0.2, 3.0) for name in names}}


def arcee(rng: random.Random) -> dict[str, Any]:
    return {**llama(rng), "hidden_act": rng.choice(["relu2", "gelu", "relu", "gelu_new"])}


def starcoder2(rng: random.Random) -> dict[str, Any]:
    act = rng.choice(["gelu_pytorch_tanh", "gelu", "relu2"])
    return {**mistral(rng), "use_bias": rng.random() < 0.7, "hidden_act": act}


def stablelm(rng: random.Random) -> dict[str, Any]:
    sizes = own_heads(llama_like(rng))
    return {**sizes, **partial(rng), "use_qkv_bias": rng.random() < 0.5}


def partial(rng: random.Random) -> dict[str, Any]:
    return rope(rng, {"partial_rotary_factor": rng.choice([0.5, 1.0])})


def gpt_neox(rng: random.Random) -> dict[str, Any]:
    sizes = own_heads(llama_like(rng))
    sizes["hidden_size"] *= 2
    del sizes["num_key_value_heads"]
    act = rng.choice(["gelu", "gelu_new", "relu"])
    parallel, bias = rng.random() < 0.5, rng.random() < 0.7
    return {**sizes, **partial(rng), "hidden_act": act, "use_parallel_residual": parallel, "attention_bias": bias}


def gemma(rng: random.Random) -> dict[str, Any]:
    return {**llama_like(rng), "attention_bias": rng.random() < 0.3}


def gemma2(rng: random.Random) -> dict[str, Any]:
    sizes = gemma(rng)
    return {
        **sizes,
        **windows(rng, sizes["num_hidden_layers"]),
        "query_pre_attn_scalar": rng.choice([4, 11]),
        "hidden_activation": rng.choice(["gelu_pytorch_tanh", "silu"]),
        "attn_logit_softcapping": rng.choice([None, 2.0]),
        "final_logit_softcapping": rng.choice([None, 3.0]),
    }


def gemma3(rng: random.Random) -> dict[str, Any]:
    sizes = {**gemma2(rng), "attn_logit_softcapping": None}
    return sizes | layered(rng, sizes)


def nanochat(rng: random.Random) -> dict[str, Any]:
    sizes = llama_like(rng, divide=False)
    while sizes["rope_parameters"]["rope_type"] == "yarn":
        sizes |= rope(rng)
    cap = rng.choice([None, 2.0, 15.0])
    return {**sizes, "hidden_act": rng.choice(["relu2", "gelu"]), "final_logit_softcapping": cap}


def phi3(rng: random.Random) -> dict[str, Any]:
    sizes = llama_like(rng, divide=False)
    factor = rng.choice([0.5, 1.0]) if sizes["head_dim"] % 4 == 0 else 1.0
    plain = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": factor}
    window = rng.choice([None, 5])
    return {**sizes, "rope_parameters": plain, "original_max_position_embeddings": CONTEXT, "sliding_window": window}


KINDS = {
    "gpt2": gpt2,
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "olmo": olmo,
    "olmo2": olmo,
    "olmo3": olmo3,
    "exaone4": exaone4,
    "granite": granite,
    "arcee": arcee,
    "starcoder2": starcoder2,
    "stablelm": stablelm,
    "gpt_neox": gpt_neox,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3_text": gemma3,
    "nanochat": nanochat,
    "phi3": phi3,
}
"""A random configuration of each dense family, by model type."""


def make(model_type: str, fields: dict[str, Any], seed: int = 0) -> Any:
    """A model of transformers with weights that matter: all of a size, norms around one, biases not zero."""
    from transformers import AutoConfig, AutoModelForCausalLM

    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    config = AutoConfig.for_model(model_type, **{**ids, **fields})
    config._attn_implementation = "eager"  # the others leave out the cap of scores
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        centre = 0.0 if parameter.ndim > 1 or name.endswith("bias") or model_type.startswith("gemma") else 1.0
        parameter.data.normal_(centre, 0.15 if parameter.ndim > 1 else 0.1)
    return model


def save(model: Any, folder: Path, **options: Any) -> Path:
    """Write it as transformers does."""
    with contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(folder, **options)
    return folder


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """(B, T) ids to (B, T, V)."""
    with torch.no_grad():
        result: torch.Tensor = model(ids, use_cache=False).logits
    return result


def some_ids(seed: int = 0, rows: int = 2, length: int = CONTEXT) -> torch.Tensor:
    """(rows, length) random token ids."""
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
