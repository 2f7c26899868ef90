"""Optimizers, parameter groups and schedules."""

from minigpt.optim.adamw import (
    AdamW,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    parameter_groups,
)
from minigpt.optim.schedule import learning_rate

__all__ = [
    "AdamW",
    "learning_rate",
    "load_optimizer_tensors",
    "make_optimizer",
    "optimizer_tensors",
    "parameter_groups",
]
