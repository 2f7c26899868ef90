"""Small random models of every architecture of llama.cpp that ours can be, for the tests of GGUF files."""

from collections.abc import Iterator
from functools import lru_cache

import torch

from minigpt.config import ModelConfig
from minigpt.model import GPT
from minigpt.tokenizer import HuggingFaceTokenizer, train_bpe

TEXT = (
    "It's a truth universally acknowledged, that a single man in possession of a good fortune must be in want of 1234 "
    "wives. However little known the feelings or views of such a man may be!\n\nWe'll see: x += 1; naïve café, Grüße.\n"
)

LAYER = {"norm": "layernorm", "qk_norm": "none", "mlp": "gelu_tanh"}
GPT2 = {**LAYER, "position": "learned", "bias": True}
FACTORS = {"attention_scale": 0.3, "residual_multiplier": 0.5, "embedding_multiplier": 3.0, "logit_multiplier": 0.25}
LLAMA3 = {"kind": "llama3", "factor": 8.0, "original_context": 32}
YARN = {"kind": "yarn", "factor": 4.0, "original_context": 32}
POST = {"qk_norm": "full", "norm_place": "post"}
WINDOWS = {"attention_window": 16, "window_pattern": "SSL"}
GEMMA = {"norm_place": "sandwich", "mlp": "geglu_tanh", "embedding_multiplier": 8.0, "n_kv_head": 2}
GEMMA2 = {**GEMMA, "qk_norm": "none", "attention_softcap": 20.0, "logit_softcap": 10.0}
EXPERTS = {"n_expert": 4, "n_expert_used": 2}
SIGMOID = {
    **{"n_expert": 6, "n_expert_used": 2, "n_inner": 32, "n_shared": 2, "first_dense": 1},
    **{"router": "sigmoid", "balance": "bias", "weight_scale": 2.5},
}
LATENT = {
    **{"attention": "latent", "qk_norm": "none", "head_dim": 16},
    "latent": {"kv_rank": 32, "q_rank": 24, "rope_dim": 8, "value_dim": 24},
}

CASES: dict[str, tuple[str, dict]] = {
    "gpt2": ("gpt2", GPT2),
    "gpt2 without biases and norm weights": ("gpt2", {**GPT2, "bias": False, "norm_weight": False}),
    "gpt2 with a head of its own": ("gpt2", {**GPT2, "tie_embeddings": False, "n_kv_head": 2}),
    "qwen3": ("qwen3", {"n_kv_head": 2}),
    "qwen3 with wide heads": ("qwen3", {"head_dim": 24, "n_kv_head": 1, "tie_embeddings": False}),
    "qwen3 with factors": ("qwen3", FACTORS),
    "qwen3 with weightless norms": ("qwen3", {"norm_weight": False, "attention_scale": 0.5}),
    "qwen3 with YaRN": ("qwen3", {"rope_scaling": {**YARN, "attention_factor": 1.3}}),
    "qwen3 with linear scaling": ("qwen3", {"rope_scaling": {"kind": "linear", "factor": 4.0}}),
    "qwen3 with NTK": ("qwen3", {"rope_scaling": {"kind": "ntk", "factor": 4.0}}),
    "qwen3 with a padded vocabulary": ("qwen3", {"vocab_multiple": 128}),
    "qwen2": ("qwen2", {"qk_norm": "none", "qkv_bias": True, "n_kv_head": 2}),
    "llama": ("llama", {"qk_norm": "none", "n_kv_head": 2}),
    "llama with biases": ("llama", {"qk_norm": "none", "n_kv_head": 2, "bias": True, "head_dim": 24}),
    "llama 3": ("llama", {"qk_norm": "none", "rope_scaling": LLAMA3, "rope_theta": 500.0}),
    "llama with half of the heads turning": ("llama", {"qk_norm": "none", "partial_rotary_factor": 0.5}),
    "llama 3 with a part": (
        "llama",
        {"qk_norm": "none", "rope_scaling": LLAMA3, "rope_theta": 500.0, "partial_rotary_factor": 0.75},
    ),
    "granite": ("granite", {"qk_norm": "none", **FACTORS}),
    "arcee": ("arcee", {"qk_norm": "none", "mlp": "relu2", "n_kv_head": 2}),
    "olmo2": ("olmo2", {**POST, "n_kv_head": 2}),
    "olmo3": ("olmo2", {**POST, **WINDOWS, "tie_embeddings": False}),
    "olmo3 with YaRN": ("olmo2", {**POST, **WINDOWS, "rope_local_theta": 10000.0, "rope_scaling": YARN}),
    "olmo2 with a factor": ("olmo2", {**POST, "residual_multiplier": 0.5}),
    "exaone4": ("exaone4", {"norm_place": "post", "n_kv_head": 2}),
    "starcoder2": ("starcoder2", {**LAYER, "bias": True, "n_kv_head": 2}),
    "gptneox": ("gptneox", {**LAYER, "bias": True, "parallel_residual": True, "partial_rotary_factor": 0.25}),
    "gptneox, one after the other": ("gptneox", {**LAYER, "partial_rotary_factor": 0.25}),
    "stablelm": ("stablelm", {**LAYER, "mlp": "swiglu", "qkv_bias": True, "partial_rotary_factor": 0.25}),
    "gemma2": ("gemma2", {**GEMMA2, "attention_window": 16, "window_pattern": "SL", "head_dim": 32}),
    "gemma2 without windows": ("gemma2", GEMMA2),
    "gemma3": ("gemma3", {**GEMMA, **WINDOWS, "rope_local_theta": 1000.0, "rope_theta": 1e6}),
    "gemma3 with scaling": (
        "gemma3",
        {**GEMMA, **WINDOWS, "rope_local_theta": 1e3, "rope_scaling": {"kind": "linear", "factor": 8.0}},
    ),
    "gemma3 without windows": ("gemma3", {**GEMMA, "logit_softcap": 15.0, "tie_embeddings": False}),
    "qwen3moe": ("qwen3moe", {"moe": {**EXPERTS, "n_expert": 5, "n_inner": 32}}),
    "mixtral": ("llama", {"qk_norm": "none", "moe": {**EXPERTS, "weight_scale": 2.5}}),
    "olmoe": ("olmoe", {"qk_norm": "full", "moe": {**EXPERTS, "normalize": False}}),
    "qwen2moe": (
        "qwen2moe",
        {
            **{"qk_norm": "none", "qkv_bias": True},
            "moe": {**EXPERTS, "normalize": False, "n_shared": 2, "shared_gate": True, "n_inner": 32},
        },
    ),
    "dots1": ("dots1", {"n_kv_head": 2, "moe": SIGMOID}),
    "dots1 with a softmax": ("dots1", {"moe": {**SIGMOID, "router": "softmax", "normalize": False, "balance": "none"}}),
    "dots1 without shared experts": ("dots1", {"moe": {**SIGMOID, "n_shared": 0, "first_dense": 0}}),
    "deepseek2": ("deepseek2", {**LATENT, "moe": SIGMOID}),
    "deepseek2 with direct queries": (
        "deepseek2",
        {**LATENT, "latent": {**LATENT["latent"], "q_rank": None}, "moe": {**SIGMOID, "first_dense": 0}},
    ),
}
"""By name: the architecture, and the keys of a model of it."""


@lru_cache
def tokenizer(pattern: str = "qwen2", size: int = 300) -> HuggingFaceTokenizer:
    """A byte-level BPE of our own."""
    return train_bpe([TEXT * 20], size, pattern)


def random_model(keys: dict, *, seed: int = 0, vocab_size: int = 300, width: int = 64) -> GPT:
    """A model whose norms, biases and choices are no trivial ones."""
    sizes = {"n_layer": 3, "n_head": 4, "n_embd": width, "context_length": 128, "init_std": 0.12}
    config = ModelConfig.model_validate({**sizes, "vocab_size": vocab_size, **keys})
    generator = torch.Generator().manual_seed(seed)
    model = GPT(config, generator=generator).eval().requires_grad_(False)
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 1 or name.endswith("balance_bias"):
            tensor += torch.randn(tensor.shape, generator=generator) * 0.1
    return model


@lru_cache
def known_keys() -> frozenset[str]:
    """Every name of a key that llama.cpp's own package has, such as "{arch}.block_count"."""
    import gguf

    def texts(place: type) -> Iterator[str]:
        for value in vars(place).values():
            if isinstance(value, type):
                yield from texts(value)
            elif isinstance(value, str):
                yield value

    return frozenset(texts(gguf.Keys))
