"""The model's parameters by part, read from the names and shapes in its weights file; no weight is loaded."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from minigpt.config import ModelConfig
from minigpt.model import count
from minigpt.reporting.runs import Run
from minigpt.storage import list_checkpoints

WEIGHTS = "model.safetensors"
# As a token passes them; a name stands where the longest beginning of it that is listed here stands.
ORDER = (
    "embed", "embed_up", "embedding_norm", "position", "smear_gate", "smear_scale", "input_scale", "residual_scale",
    "blocks.attention_norm", "blocks.attention.qkv", "blocks.attention.q", "blocks.attention.q_down",
    "blocks.attention.q_norm", "blocks.attention.q_up", "blocks.attention.k_norm", "blocks.attention.kv_down",
    "blocks.attention.kv_norm", "blocks.attention.kv_up", "blocks.attention.value_embed",
    "blocks.attention.value_gate", "blocks.attention.out", "blocks.attention_post_norm", "blocks.mlp_norm",
    "blocks.mlp", "blocks.mlp.gate_up", "blocks.mlp.up", "blocks.mlp.down", "blocks.mlp.router", "blocks.mlp.experts",
    "blocks.mlp.shared", "blocks.mlp.shared_gate", "blocks.mlp_post_norm", "blocks", "backout_scale", "norm",
    "head_down", "head",
)  # fmt: skip
NOT_TRAINED = ".balance_bias"
"""A tensor in the weights file that is no parameter: the bias of a mixture's choice, which a rule of its own moves."""
_NUMBER = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Part:
    """Tensors of one kind: those of all blocks together."""

    name: str
    shape: tuple[int, ...]
    copies: int
    """How many there are, one in each block for instance."""
    parameters: int
    """Of all copies."""


def parts(run: Run) -> list[Part]:
    """The parts of the run's newest model, in the order in which a token passes them; empty if it has saved none."""
    for folder in (run.path / "model", *reversed(list_checkpoints(run.path))):
        shapes = _shapes(folder / WEIGHTS)
        if shapes:
            return _grouped(shapes)
    return []


def flops_per_token(run: Run, found: Sequence[Part]) -> float | None:
    """Operations to train on one token, as `minigpt.model.count` has them; None where they are unknown.

    found: the run's parts. They tell N of 6 N + 12 L H Q T where a part of the network is the user's own, whose code a
    report never runs.
    """
    try:
        model = ModelConfig.model_validate(run.config.get("model"))
        if isinstance(model.mlp, str):
            return float(count.flops_per_token(model))
    except (ValidationError, ValueError):
        return None
    if not found:
        return None
    sizes = {part.name: part.parameters for part in found}
    looked_up = sizes.get("position", 0) + (sizes.get("embed", 0) if "head" in sizes else 0)
    attention = model.n_layer * model.n_head * model.head_size * model.context_length
    return 6.0 * (sum(sizes.values()) - looked_up) + 12.0 * attention


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="numpy") as file:
            names = [name for name in file.keys() if not name.endswith(NOT_TRAINED)]  # noqa: SIM118
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError):  # not there, or just being removed because a newer one is
        return {}


def _grouped(shapes: Mapping[str, tuple[int, ...]]) -> list[Part]:
    groups: dict[tuple[str, tuple[int, ...]], int] = {}
    for name, shape in shapes.items():
        plain = _NUMBER.sub(".", f".{name}").removeprefix(".").removesuffix(".weight")
        groups[plain, shape] = groups.get((plain, shape), 0) + 1
    found = [Part(name, shape, copies, copies * math.prod(shape)) for (name, shape), copies in groups.items()]
    return sorted(found, key=lambda part: (_place(part.name), part.name, part.shape))


def _place(name: str) -> int:
    """Where a part stands in ORDER; at the end if it is unknown."""
    beginnings = [known for known in ORDER if name == known or name.startswith(f"{known}.")]
    return ORDER.index(max(beginnings, key=len)) if beginnings else len(ORDER)
