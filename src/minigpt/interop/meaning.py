"""What of a config shapes the function from ids to logits, so that two configs can be compared.

Two configs mean the same network if `meaning` is equal, however they are written: `n_kv_head: null` and `n_kv_head: 12`
of 12 heads, a window longer than the context and none, options of a part that is not there. How a model is trained
(initial weights, dropout, what balances experts) is no part of it, nor are rows that only pad the vocabulary.
"""

from typing import Any

from minigpt.config import ModelConfig
from minigpt.config.extension import portable

Meaning = dict[str, Any]
"""Values by config key, such as `model.norm` or `model.rope_scaling.factor`."""

_AS_WRITTEN = (
    *("n_layer", "n_head", "n_embd", "context_length", "vocab_size", "norm", "norm_eps", "norm_weight", "norm_place"),
    *("parallel_residual", "embedding_norm", "position", "attention", "attention_softcap", "tie_embeddings"),
    *("embedding_size", "embedding_multiplier", "residual_multiplier", "logit_multiplier", "logit_softcap"),
)
"""Keys whose value is what it means, whatever the others are."""
_SCALING = {
    "none": (),
    "linear": ("factor",),
    "yarn": ("factor", "original_context", "beta_fast", "beta_slow"),
    "llama3": ("factor", "original_context", "low_freq_factor", "high_freq_factor"),
}
"""Which keys of `model.rope_scaling` each kind reads."""


def meaning(config: ModelConfig) -> Meaning:
    """What shapes the function, by config key."""
    return {
        **{f"model.{key}": getattr(config, key) for key in _AS_WRITTEN},
        "model.head_dim": config.head_size,
        "model.attention_scale": config.score_scale,
        "model.attention_window": _windows(config),
        "model.qkv_bias": config.has_qkv_bias,
        "model.out_bias": config.has_out_bias,
        "model.mlp_bias": config.has_mlp_bias,
        "model.norm_bias": config.has_norm_bias,
        # a class of the user's own is the same in a copy of its file
        "model.mlp": portable(config.model_dump(mode="json", include={"mlp"}))["mlp"],
        **_rotation(config),
        **_heads(config),
        **_feedforward(config),
        **{f"model.speed.{key}": value for key, value in config.speed.model_dump().items()},
    }


def differences(wanted: ModelConfig, got: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """The keys in which two configs mean different networks, each with both values (None where a key has no say)."""
    ours, theirs = meaning(wanted), meaning(got)
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return {key: (ours.get(key), theirs.get(key)) for key in keys if not _same(ours.get(key), theirs.get(key))}


def _same(one: Any, other: Any) -> bool:
    """Equal; of numbers as nearly as one that was computed from the other and back (1/x) is."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-12 * max(abs(one), abs(other))
    return bool(one == other)


def _windows(config: ModelConfig) -> list[int | None]:
    """Each layer's window; None where the whole context fits into it."""
    windows = [config.window(layer) for layer in range(config.n_layer)]
    return [None if window is None or window >= config.context_length else window for window in windows]


def _rotation(config: ModelConfig) -> Meaning:
    if config.position != "rope":
        return {}
    scaling = config.rope_scaling
    # as the network does it: layers with a window, however long, turn by the local base and are not scaled
    short = [config.window(layer) is not None for layer in range(config.n_layer)]
    local = config.rope_local_theta if any(short) else None
    if local == config.rope_theta and scaling.kind == "none":
        local = None
    found: Meaning = {}
    if config.attention == "standard":
        found["model.partial_rotary_factor"] = config.rotary_dim / config.head_size
    if local is not None:
        found["model.rope_local_theta"] = local
    if local is not None and all(short):
        return found
    if scaling.kind == "ntk":  # a larger base, and nothing else
        dim = config.rotary_dim
        power = dim / (dim - 2) if dim > 2 else 0.0
        return found | {
            "model.rope_theta": config.rope_theta * scaling.factor**power,
            "model.rope_scaling.kind": "none",
        }
    found |= {"model.rope_theta": config.rope_theta, "model.rope_scaling.kind": scaling.kind}
    found |= {f"model.rope_scaling.{key}": getattr(scaling, key) for key in _SCALING[scaling.kind]}
    if scaling.kind == "yarn":
        found["model.rope_scaling.attention_factor"] = scaling.magnitude
    return found


def _heads(config: ModelConfig) -> Meaning:
    if config.attention == "standard":
        return {"model.n_kv_head": config.kv_heads, "model.qk_norm": config.qk_norm}
    return {
        "model.latent.kv_rank": config.latent.kv_rank,
        "model.latent.q_rank": config.latent.q_rank,
        "model.latent.rope_dim": config.latent.rope_dim,
        "model.latent.value_dim": config.value_size,
    }


def _feedforward(config: ModelConfig) -> Meaning:
    moe = config.moe
    layers = [config.has_experts(layer) for layer in range(config.n_layer)]
    found: Meaning = {"model.moe.n_expert": moe.n_expert}
    if not all(layers):
        found["model.n_inner"] = config.inner_size
    if not any(layers):
        return found
    found |= {
        "model.moe.first_dense and model.moe.period": layers,
        "model.moe.n_expert_used": moe.n_expert_used,
        "model.moe.n_inner": config.expert_size,
        "model.moe.n_shared": moe.n_shared,
        "model.moe.router": moe.router,
        "model.moe.weight_scale": moe.weight_scale,
        "model.moe.balance": "bias" if moe.balance == "bias" else "none",  # the others act in training only
    }
    if moe.n_expert > 1 or moe.router == "sigmoid":  # else the only weight is 1 in either way
        found["model.moe.normalize"] = moe.normalize
    if moe.n_shared:
        found["model.moe.shared_gate"] = moe.shared_gate
    return found
