"""The names of llama.cpp's tensors, and how ours are made of them.

Its matrices are ours, (out, in); a file lists dimensions the other way round, which the package `gguf` hides.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from minigpt.config import ModelConfig
from minigpt.config.model import GATED
from minigpt.interop.gguf import latent
from minigpt.interop.gguf.architecture import Architecture
from minigpt.interop.gguf.experts import BIAS
from minigpt.interop.tensors import Rule, half_from_interleaved, interleaved_from_half, rows, same

TABLE_TENSOR = "rope_freqs.weight"


def rules(architecture: Architecture, config: ModelConfig) -> list[Rule]:
    """One rule for each tensor of a model that the architecture represents."""
    found = [same("embed.weight", "token_embd.weight")]
    if config.position == "learned":
        found.append(same("position.weight", "position_embd.weight"))
    for layer in range(config.n_layer):
        found += _block(architecture, config, layer)
    found += _norm(config, "norm", "output_norm")
    if not config.tie_embeddings:
        found.append(same("head.weight", "output.weight"))
    return found


def _block(architecture: Architecture, config: ModelConfig, layer: int) -> Iterator[Rule]:
    ours, theirs = f"blocks.{layer}.", f"blk.{layer}."
    if config.norm_place in ("pre", "sandwich"):
        yield from _norm(config, f"{ours}attention_norm", f"{theirs}attn_norm")
        yield from _norm(config, f"{ours}mlp_norm", f"{theirs}ffn_norm")
    if config.norm_place in ("post", "sandwich"):
        yield from _norm(config, f"{ours}attention_post_norm", f"{theirs}post_attention_norm")
        yield from _norm(config, f"{ours}mlp_post_norm", f"{theirs}post_ffw_norm")
    if config.attention == "latent":
        yield from latent.rules(config, f"{ours}attention.", f"{theirs}attn_")
    else:
        yield from _attention(architecture, config, f"{ours}attention.", f"{theirs}attn_")
    if config.has_experts(layer):
        if config.moe.balance == "bias":
            yield same(f"{ours}mlp.balance_bias", f"{theirs}{BIAS}")
        yield from _experts(config, f"{ours}mlp.", f"{theirs}ffn_")
    else:
        yield from _feedforward(config, f"{ours}mlp.", f"{theirs}ffn_")


def _norm(config: ModelConfig, ours: str, theirs: str) -> Iterator[Rule]:
    for kind in ("weight", "bias") if config.has_norm_bias else ("weight",):
        yield same(f"{ours}.{kind}", f"{theirs}.{kind}")


def _attention(architecture: Architecture, config: ModelConfig, ours: str, theirs: str) -> Iterator[Rule]:
    sizes = [heads * config.head_size for heads in (config.n_head, config.kv_heads, config.kv_heads)]
    for kind in ("weight", "bias") if config.has_qkv_bias else ("weight",):
        if architecture.fused:
            yield same(f"{ours}qkv.{kind}", f"{theirs}qkv.{kind}")
            continue
        rule = rows(f"{ours}qkv.{kind}", [f"{theirs}{part}.{kind}" for part in "qkv"], sizes)
        if architecture.interleaved:
            rule = _turned(_turned(rule, 0, config.n_head, config), 1, config.kv_heads, config)
        yield rule
    if config.qk_norm != "none":
        yield same(f"{ours}q_norm.weight", f"{theirs}q_norm.weight")
        yield same(f"{ours}k_norm.weight", f"{theirs}k_norm.weight")
    for kind in ("weight", "bias") if config.has_out_bias else ("weight",):
        yield same(f"{ours}out.{kind}", f"{theirs}output.{kind}")


def _turned(rule: Rule, index: int, heads: int, config: ModelConfig) -> Rule:
    """The rule with the rotating rows of one of theirs in the order of neighbours."""
    return rule.changed(
        index,
        lambda tensor: half_from_interleaved(tensor, heads, config.rotary_dim),
        lambda tensor: interleaved_from_half(tensor, heads, config.rotary_dim),
    )


def _feedforward(config: ModelConfig, ours: str, theirs: str) -> Iterator[Rule]:
    kinds = ("weight", "bias") if config.has_mlp_bias else ("weight",)
    for kind in kinds:
        if config.mlp in GATED:
            size = config.inner_size
            names = [f"{theirs}gate.{kind}", f"{theirs}up.{kind}"]
            yield rows(f"{ours}gate_up.{kind}", names, [size, size])
        else:
            yield same(f"{ours}up.{kind}", f"{theirs}up.{kind}")
        yield same(f"{ours}down.{kind}", f"{theirs}down.{kind}")


def _experts(config: ModelConfig, ours: str, theirs: str) -> Iterator[Rule]:
    yield same(f"{ours}router.weight", f"{theirs}gate_inp.weight")
    yield Rule(
        f"{ours}experts.gate_up",  # (E, 2 * inner, C)
        (f"{theirs}gate_exps.weight", f"{theirs}up_exps.weight"),  # (E, inner, C) each
        lambda parts: torch.cat(parts, dim=1),
        lambda tensor: list(tensor.chunk(2, dim=1)),
    )
    yield same(f"{ours}experts.down", f"{theirs}down_exps.weight")
    if config.moe.n_shared:
        size = config.moe.n_shared * config.expert_size
        names = [f"{theirs}gate_shexp.weight", f"{theirs}up_shexp.weight"]
        yield rows(f"{ours}shared.gate_up.weight", names, [size, size])
        yield same(f"{ours}shared.down.weight", f"{theirs}down_shexp.weight")
    if config.moe.shared_gate:
        yield same(f"{ours}shared_gate.weight", f"{theirs}gate_inp_shexp.weight").changed(0, _as_row, _as_vector)


def _as_row(tensor: Tensor) -> Tensor:
    """(C) to (1, C)."""
    return tensor.reshape(1, -1)


def _as_vector(tensor: Tensor) -> Tensor:
    """(1, C) to (C)."""
    return tensor.reshape(-1)
