"""How many tokens a model is worth, and what to change where a run does not fit."""

import math

from minigpt.config import Config
from minigpt.config.depth import TOKENS_PER_PARAMETER
from minigpt.config.mesh import Sizes
from minigpt.training.console import amount
from minigpt.training.planning.rows import largest_rows, memory_on, with_rows

FEW, MANY = 0.5, 2.0
"""Within these factors of the optimum the loss is hardly higher (Hoffmann et al. 2022, figure 3: flat valleys)."""


def on_tokens(parameters: int, tokens: int) -> str:
    """Whether a run's arithmetic is well spent: Hoffmann et al. 2022 ("Chinchilla"), table 3: about 20 tokens a
    parameter, at 6 operations a parameter and token.
    """
    ratio = tokens / parameters
    best = math.sqrt(parameters * tokens / TOKENS_PER_PARAMETER)  # C = 6 N D is the same with D = 20 N
    said = f"{ratio:.3g} a parameter, where about {TOKENS_PER_PARAMETER} make the most of the arithmetic"
    other = f"{amount(best)} parameters on {amount(TOKENS_PER_PARAMETER * best)} tokens"
    if ratio < FEW * TOKENS_PER_PARAMETER:
        return f"{said}: train longer, or take {other}"
    if ratio > MANY * TOKENS_PER_PARAMETER:
        return f"{said}: {other} would reach a lower loss, but a small model trained long is cheaper to use"
    return said


def to_fit(config: Config, device: str, limit: float, sizes: Sizes) -> list[str]:
    """The changes that bring training down to `limit` bytes a device, those that cost least first."""
    rows, training = config.training.micro_batch, config.training
    assert isinstance(rows, int)
    smaller = largest_rows(config, device, limit, sizes, below=rows)
    if smaller is not None:
        return [f"training.micro_batch={smaller}"]
    changes = ["training.micro_batch=1"] if rows > 1 else []
    tried = with_rows(config, 1)
    for key, value in (("precision", "bf16"), ("activation_checkpointing", "full")):
        if getattr(training, key) == ("fp32" if key == "precision" else "none"):
            changes.append(f"training.{key}={value}")
            tried = tried.model_copy(update={"training": tried.training.model_copy(update={key: value})})
            if memory_on(tried, device, sizes).total <= limit:
                return changes
    if device != "cpu" and sizes["tp"] == sizes["pp"] == 1:
        for shards in (2**power for power in range(1, 11)):
            more = {"dp": 1, "fsdp": sizes["fsdp"] * shards}
            if memory_on(tried, device, {**sizes, **more}).total <= limit:
                return [*changes, f"distributed.mesh={{fsdp: {more['fsdp']}}} on {more['fsdp']} devices or more"]
    return [*changes, "a smaller model or model.context_length"]
