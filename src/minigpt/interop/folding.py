"""Factors of a model that go into its matrices: the same function (but for rounding) of a model without them.

(a) Attention's scale s, of queries with d dimensions: s * sqrt(d) goes into the weights of the queries' norm, or into
the rows of the queries. (b) What each sub-layer adds is multiplied by the residual multiplier: into the projections
that add it, or into the norms behind them. (c) The multiplier of the embeddings, and (d) that of the logits, into the
two matrices, which then are two even if they were one. (e) The scale of the experts' weights: into their projections
down.
"""

from collections.abc import Collection
from typing import Any

from torch import Tensor

from minigpt.config import ModelConfig

State = dict[str, Tensor]


def folded(config: ModelConfig, keep: Collection[str] = ()) -> ModelConfig:
    """The config without these factors but those in `keep`, which the architecture can say."""
    update: dict[str, Any] = {}
    if config.attention == "standard" and "attention_scale" not in keep and config.attention_scale is not None:
        update["attention_scale"] = None
        update["norm_weight"] = True if config.qk_norm != "none" else config.norm_weight
    if "residual_multiplier" not in keep:
        update["residual_multiplier"] = 1.0
        if config.residual_multiplier != 1.0 and config.norm_place != "pre":
            update["norm_weight"] = True
    for key in ("embedding_multiplier", "logit_multiplier"):
        if key not in keep and getattr(config, key) != 1.0:
            update |= {key: 1.0, "tie_embeddings": False}
    if config.moe.weight_scale != 1.0:
        update["moe"] = config.moe.model_copy(update={"weight_scale": 1.0})
    return config.model_copy(update=update)


def fold(state: State, config: ModelConfig, new: ModelConfig) -> State:
    """The weights of `config` as those of `new`, which `folded` gave. Norms that get factors must have weights."""
    state = dict(state)
    if not new.tie_embeddings:
        state.setdefault("head.weight", state["embed.weight"])
    _scale(state, ["embed.weight"], config.embedding_multiplier / new.embedding_multiplier)
    if not new.tie_embeddings:
        _scale(state, ["head.weight"], config.logit_multiplier / new.logit_multiplier)
    queries = config.score_scale / new.score_scale
    rows = config.n_head * config.head_size
    for layer in range(config.n_layer):
        block = f"blocks.{layer}."
        if config.attention == "standard" and config.qk_norm != "none":
            _scale(state, [f"{block}attention.q_norm.weight"], queries)
        elif config.attention == "standard":
            _scale(state, [f"{block}attention.qkv.weight", f"{block}attention.qkv.bias"], queries, rows)
        _scale(state, _adding(config, block), config.residual_multiplier / new.residual_multiplier)
        _scale(state, [f"{block}mlp.experts.down"], config.moe.weight_scale / new.moe.weight_scale)
    return state


def _adding(config: ModelConfig, block: str) -> list[str]:
    """The last tensors of the two sub-layers, to which what they add is proportional."""
    if config.norm_place != "pre":
        norms = ("attention_post_norm", "mlp_post_norm")
        return [f"{block}{norm}.{kind}" for norm in norms for kind in ("weight", "bias")]
    matrices = [f"{block}{name}.{kind}" for name in ("attention.out", "mlp.down") for kind in ("weight", "bias")]
    return [*matrices, f"{block}mlp.experts.down", f"{block}mlp.shared.down.weight"]


def _scale(state: State, names: list[str], factor: float, rows: int | None = None) -> None:
    """Multiply those of the tensors that are there (their first rows only), in copies."""
    if factor == 1.0:
        return
    for name in filter(state.__contains__, names):
        state[name] = state[name].clone()
        state[name][:rows] *= factor
