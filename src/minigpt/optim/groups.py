"""Which parameters share their settings: what an objective trains, and what the config says of some of them."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from minigpt.config import OptimizerConfig, RequestError
from minigpt.config.optimizer import GroupConfig
from minigpt.optim.matrices import for_muon

Group = dict[str, Any]

DISTINCT = ("kind", "lr_scale", "weight_decay", "betas")
"""What the members of a group have in common."""


def parameter_groups(parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, object]]:
    """Two groups of the trainable ones of `parameters`: matrices with decay; vectors (biases, norms) without."""
    trainable = [(name, p) for name, p in parameters if p.requires_grad]
    matrices = [(name, p) for name, p in trainable if p.dim() >= 2]
    vectors = [(name, p) for name, p in trainable if p.dim() < 2]
    return [
        {"params": [p for _, p in members], "names": [name for name, _ in members], "weight_decay": decay}
        for members, decay in ((matrices, weight_decay), (vectors, 0.0))
        if members
    ]


def settled_groups(
    groups: Iterable[Mapping[str, Any]],
    config: OptimizerConfig,
    names: Mapping[Tensor, str] | None = None,
    elsewhere: Iterable[str] = (),
) -> list[Group]:
    """An objective's groups, cut further where the config has other settings for some of their members.

    names: of all parameters, where the groups do not have them beside `params`.
    elsewhere: names of parameters that other processes have: a pattern may be meant for them.

    Returns:
        Dicts of `params` and `names`, `kind` (adamw or muon), `lr` (before any step the peak), `lr_scale` (times the
        schedule's learning rate), `weight_decay`, `betas`, `eps`; in the order of the groups given.

    Raises:
        RequestError: a pattern of optimizer.groups matches nothing, or asks for Muon on what is no matrix.
    """
    settled: list[Group] = []
    for group in groups:
        base: Group = {"betas": config.betas, "eps": config.eps, "lr_scale": 1.0} | dict(group)
        members = base.pop("params")
        called = base.pop("names", None) or [(names or {})[parameter] for parameter in members]
        parts: dict[tuple[Any, ...], Group] = {}
        for name, parameter in zip(called, members, strict=True):
            settings = base | _settings(name, parameter, base, config)
            part = parts.setdefault(tuple(settings[key] for key in DISTINCT), settings | {"params": [], "names": []})
            part["params"].append(parameter)
            part["names"].append(name)
        settled += parts.values()
    _require_matches(config, [*(name for group in settled for name in group["names"]), *elsewhere])
    return settled


def _settings(name: str, parameter: Tensor, base: Group, config: OptimizerConfig) -> Group:
    """What moves a parameter, and how: the config's word on it, where there is one, before that of its group."""
    own = next((own for own in config.groups if fnmatchcase(name, own.match)), GroupConfig(match="*"))
    muon = config.name == "muon" and (
        own.optimizer == "muon" or (own.optimizer is None and for_muon(name, parameter.shape))
    )
    if muon and parameter.dim() not in (2, 3):
        raise RequestError(
            f"optimizer.groups: Muon moves matrices, and {name}, which {own.match!r} matches, has the shape "
            f"{tuple(parameter.shape)}: leave optimizer=muon out for it"
        )
    peak = config.muon.lr if muon and config.muon.lr is not None else config.lr
    scale = base["lr_scale"] * own.lr_scale * (peak / config.lr)
    return {
        "kind": "muon" if muon else "adamw",
        "lr": config.lr * scale,
        "lr_scale": scale,
        "weight_decay": base["weight_decay"] if own.weight_decay is None else own.weight_decay,
        "betas": tuple(base["betas"] if own.betas is None else own.betas),
    }


def _require_matches(config: OptimizerConfig, names: list[str]) -> None:
    for own in config.groups:
        if not any(fnmatchcase(name, own.match) for name in names):
            raise RequestError(
                f"optimizer.groups: no parameter that is trained matches {own.match!r}; some of their names are "
                f"{', '.join([*names[:2], *names[-1:]])}"
            )
