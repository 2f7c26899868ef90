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
    "embed", "embed_up", "position", "blocks.attention_norm", "blocks.attention.qkv", "blocks.attention.q_norm",
    "blocks.attention.k_norm", "blocks.attention.out", "blocks.mlp_norm", "blocks.mlp", "blocks.mlp.gate_up",
    "blocks.mlp.up", "blocks.mlp.down", "blocks", "norm", "head_down", "head",
)  # fmt: skip
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
    """Operations to train on one token: 6 N + 12 L H Q T, as `minigpt.model.count` has it; None where it is unknown.

    found: the run's parts. They also tell N of a network with a part of the user's own, whose code a report never runs.
    """
    try:
        model = ModelConfig.model_validate(run.config.get("model"))
        if not found:
            return float(count.flops_per_token(model)) if isinstance(model.mlp, str) else None
    except (ValidationError, ValueError):
        return None
    sizes = {part.name: part.parameters for part in found}
    looked_up = sizes.get("position", 0) + (sizes.get("embed", 0) if "head" in sizes else 0)
    attention = model.n_layer * model.n_head * model.head_size * model.context_length
    return 6.0 * (sum(sizes.values()) - looked_up) + 12.0 * attention


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
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
