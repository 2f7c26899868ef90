"""Optimizers, parameter groups and schedules."""

from minigpt.optim.adamw import (
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    parameter_groups,
    step_scaled,
)
from minigpt.optim.schedule import learning_rate

__all__ = [
    "learning_rate",
    "load_optimizer_tensors",
    "make_optimizer",
    "optimizer_tensors",
    "parameter_groups",
    "step_scaled",
]
