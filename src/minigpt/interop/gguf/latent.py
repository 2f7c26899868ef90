"""Latent attention (MLA) in GGUF's keys and tensors, in llama.cpp's architecture `deepseek2`.

It keeps the latent vector and the rotary key of each token, and lets each head ask those; so the matrix that makes
keys and values of the latent vector comes as two, by head, the keys' transposed.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from minigpt.config import ModelConfig, RequestError
from minigpt.interop.tensors import Rule, half_from_interleaved, interleaved_from_half, same

LITE_LAYERS = (26, 27)
"""Numbers of layers at which llama.cpp takes queries to be made without a latent vector, whatever the file says."""


def write(config: ModelConfig) -> dict[str, Any]:
    """The keys; the attention that llama.cpp sees has one key/value head."""
    latent = config.latent
    keys = {
        "attention.head_count_kv": 1,
        "attention.key_length": latent.kv_rank + latent.rope_dim,
        "attention.value_length": latent.kv_rank,
        "attention.key_length_mla": config.query_size,
        "attention.value_length_mla": config.value_size,
        "attention.kv_lora_rank": latent.kv_rank,
        "attention.q_lora_rank": 0 if config.n_layer in LITE_LAYERS else latent.q_rank or 0,
        "rope.dimension_count": latent.rope_dim,
        "rope.freq_base": config.rope_theta,
    }
    return keys


def read(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The options. RequestError: a key is missing."""
    names = ("attention.key_length_mla", "attention.value_length_mla", "attention.kv_lora_rank", "rope.dimension_count")
    for name in names:
        if not isinstance(keys.get(name), int):
            raise RequestError(f"the GGUF file has {name}={keys.get(name)!r}: expected a whole number")
    if keys.get("rope.scaling.type", "none") != "none":
        raise RequestError("scaled rotary positions of GGUF's deepseek2 are not represented")
    rope_dim = keys["rope.dimension_count"]
    return {
        "attention": "latent",
        "head_dim": keys["attention.key_length_mla"] - rope_dim,
        "rope_theta": keys.get("rope.freq_base", 10000.0),
        "n_kv_head": None,
        "latent": {
            "kv_rank": keys["attention.kv_lora_rank"],
            "q_rank": keys.get("attention.q_lora_rank") or None,
            "rope_dim": rope_dim,
            "value_dim": keys["attention.value_length_mla"],
        },
    }


def rules(config: ModelConfig, ours: str, theirs: str) -> Iterator[Rule]:
    """The tensors of one layer."""
    latent, heads = config.latent, config.n_head
    if latent.q_rank is None:
        yield _turned(same(f"{ours}q.weight", f"{theirs}q.weight"), heads, latent.rope_dim)
    else:
        yield same(f"{ours}q_down.weight", f"{theirs}q_a.weight")
        yield same(f"{ours}q_norm.weight", f"{theirs}q_a_norm.weight")
        yield _turned(same(f"{ours}q_up.weight", f"{theirs}q_b.weight"), heads, latent.rope_dim)
    yield _turned(same(f"{ours}kv_down.weight", f"{theirs}kv_a_mqa.weight"), 1, latent.rope_dim)
    yield same(f"{ours}kv_norm.weight", f"{theirs}kv_a_norm.weight")
    keys, values = config.head_size, config.value_size

    def join(parts: list[Tensor]) -> Tensor:
        """(H, rank, D) and (H, Dv, rank) to (H * (D + Dv), rank)."""
        return torch.cat([parts[0].transpose(1, 2), parts[1]], dim=1).flatten(0, 1)

    def split(tensor: Tensor) -> list[Tensor]:
        key, value = tensor.unflatten(0, (heads, keys + values)).split([keys, values], dim=1)
        return [key.transpose(1, 2), value]

    yield Rule(f"{ours}kv_up.weight", (f"{theirs}k_b.weight", f"{theirs}v_b.weight"), join, split)
    yield same(f"{ours}out.weight", f"{theirs}output.weight")


def _turned(rule: Rule, heads: int, rope_dim: int) -> Rule:
    """The rule with the last rows of each head, the rotary ones, in the order of neighbours."""

    def last(tensor: Tensor, turn: Any) -> Tensor:
        head = tensor.unflatten(0, (heads, -1))
        plain, rotary = head.split([head.size(1) - rope_dim, rope_dim], dim=1)
        rotary = turn(rotary.flatten(0, 1), heads).unflatten(0, (heads, rope_dim))
        return torch.cat([plain, rotary], dim=1).flatten(0, 1)

    return rule.changed(
        0, lambda tensor: last(tensor, half_from_interleaved), lambda tensor: last(tensor, interleaved_from_half)
    )
