"""Which class of transformers represents a model exactly, if need be after rewriting its weights without loss.

A rewrite gives the weights a part that the class always has and the model has not, such that the function stays what it
is: biases that are missing become zeros, norms without weights get ones, a tied head its copy, key/value heads that
serve several query heads are repeated, an unused shared expert gives zeros, a choice without a bias a bias of zeros.
What needs more than that is refused with the reason. Nothing is approximated.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from minigpt.config import ModelConfig, RequestError
from minigpt.config.extension import Extension
from minigpt.interop.folding import fold, folded
from minigpt.interop.huggingface.family import Family
from minigpt.interop.meaning import differences
from minigpt.interop.resize import resize
from minigpt.model import GPT

Lacking = dict[str, tuple[Any, Any]]
"""Keys that a class cannot have as the model does, with both values."""

REWRITES: dict[str, tuple[Any, Any]] = {
    "model.qkv_bias": (False, True),
    "model.out_bias": (False, True),
    "model.mlp_bias": (False, True),
    "model.norm_bias": (False, True),
    "model.norm_weight": (False, True),
    "model.tie_embeddings": (True, False),
    "model.moe.balance": ("none", "bias"),
}
"""Keys that may differ, from the model's value to the class's, with the rewrite that `rewrite` does."""


@dataclass(frozen=True)
class Representation:
    """A class of transformers that computes the same function as a model."""

    family: Family
    config: ModelConfig
    """The model as the class has it: read from what the class's config.json says."""
    hf_config: dict[str, Any]
    folded: ModelConfig
    """The model after factors have gone into its matrices (see `interop.folding`), mostly as it was."""
    rewritten: tuple[str, ...]
    """The keys in which `config` is another one than the model's."""


def represent(config: ModelConfig, families: Mapping[str, Family]) -> Representation:
    """The first class that says a model exactly, with as few rewrites as possible.

    families: by model type, the most usual first. If no class says the model as it is, its factors may go into its
    matrices. `RequestError` with the nearest class and what it lacks if that does not help.
    """
    if isinstance(config.mlp, Extension):
        raise RequestError(
            f"no transformers class represents this model: model.mlp={config.mlp} is a class of your own"
        )
    config = config.model_copy(update={"vocab_multiple": 1, "init_from": None})
    found, nearest = _search(config, families)
    if found is None:
        found, _ = _search(folded(config), families)
    if found is not None:
        return replace(found, rewritten=tuple(differences(config, found.config)))
    if nearest is None:
        raise RequestError("no transformers class represents this model")
    family, lacking = nearest
    raise RequestError(
        f"no transformers class represents this model: the nearest, {family.architecture}, "
        f"{' and '.join(lack(key, *pair) for key, pair in lacking.items())}"
    )


def _search(
    config: ModelConfig, families: Mapping[str, Family]
) -> tuple[Representation | None, tuple[Family, Lacking] | None]:
    """The class that needs the fewest rewrites, or the one that lacks the least, with that."""
    best: Representation | None = None
    nearest: tuple[Family, Lacking] | None = None
    for family in families.values():
        try:
            hf_config = family.write(config)
            theirs = family.read(hf_config)
        except RequestError:  # one of its own rules: nothing that it could be made to say
            continue
        different = differences(config, theirs)
        lacking = {key: pair for key, pair in different.items() if not _rewritable(key, *pair)}
        if not lacking:
            if best is None or len(different) < len(best.rewritten):
                best = Representation(family, theirs, hf_config, config, tuple(different))
        elif nearest is None or len(lacking) < len(nearest[1]):
            nearest = family, lacking
    return best, nearest


def as_represented(state: Mapping[str, Tensor], config: ModelConfig, found: Representation) -> dict[str, Tensor]:
    """The weights of a model as those of the class that `represent` found for it."""
    with_norms = config.model_copy(update={"norm_weight": found.folded.norm_weight})
    state = fold(rewrite(state, config, with_norms), config, found.folded)
    return rewrite(state, found.folded, found.config)


def rewrite(state: Mapping[str, Tensor], config: ModelConfig, theirs: ModelConfig) -> dict[str, Tensor]:
    """The weights of `config` with the parts that `theirs` has besides: the same function, the same bits.

    Tensors that stay as they are are not copied.
    """
    _, tensors, _ = resize(config, state.items(), vocab_multiple=1)
    new = dict(tensors)
    if config.attention == "standard" and config.kv_heads != theirs.kv_heads:
        for name in [name for name in new if ".attention.qkv." in name]:
            new[name] = _repeated(new[name], config, theirs.kv_heads)
        for name in [name for name in new if name.endswith("attention.k_norm.weight") and config.qk_norm == "full"]:
            new[name] = _repeat_heads(new[name], config.kv_heads, theirs.kv_heads)
    with torch.device("meta"):
        expected = GPT(theirs).state_dict()
    for name, wanted in expected.items():
        if name not in new:
            new[name] = new["embed.weight"] if name == "head.weight" else _neutral(name, wanted)
    return {name: new[name] for name in expected}


def _rewritable(key: str, ours: Any, theirs: Any) -> bool:
    if key == "model.n_kv_head":
        return bool(ours and theirs and theirs % ours == 0)
    if key == "model.moe.n_shared":
        return bool(ours == 0 and theirs)
    if key == "model.moe.shared_gate":
        return ours is None  # there is nothing behind the gate
    return REWRITES.get(key) == (ours, theirs)


def _neutral(name: str, wanted: Tensor) -> Tensor:
    """What has no effect in the place of a tensor that the model does not have."""
    zeros = name.endswith((".bias", "balance_bias")) or ".shared" in name
    if not zeros and not name.endswith("norm.weight"):
        raise AssertionError(f"nothing neutral is known for {name}")
    return torch.zeros(wanted.shape) if zeros else torch.ones(wanted.shape)


def _repeated(qkv: Tensor, config: ModelConfig, heads: int) -> Tensor:
    """(rows of queries, keys, values; ...) with each key/value head as often as it serves."""
    kv_rows = config.kv_heads * config.head_size
    q, k, v = qkv.split([qkv.size(0) - 2 * kv_rows, kv_rows, kv_rows])
    return torch.cat([q, _repeat_heads(k, config.kv_heads, heads), _repeat_heads(v, config.kv_heads, heads)])


def _repeat_heads(rows: Tensor, heads: int, wanted: int) -> Tensor:
    """(heads * head_dim, ...) to (wanted * head_dim, ...): query heads read them in groups, so each is repeated."""
    return rows.unflatten(0, (heads, -1)).repeat_interleave(wanted // heads, dim=0).flatten(0, 1)


def lack(key: str, ours: Any, theirs: Any) -> str:
    """What to say of a key that a class cannot have as the model does."""
    if ours is None or theirs is None or isinstance(ours, bool | list):
        return f"has no {key}={_shown(ours)}"
    return f"has {key}={_shown(theirs)} and not {_shown(ours)}"


def _shown(value: Any) -> str:
    """As it would be written in a config."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return "[" + ",".join(map(_shown, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
