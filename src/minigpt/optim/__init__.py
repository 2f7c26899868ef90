"""Optimizers, parameter groups and schedules."""

from minigpt.optim.adamw import AdamW
from minigpt.optim.ema import Average
from minigpt.optim.groups import parameter_groups
from minigpt.optim.optimizer import Optimizer, make_optimizer
from minigpt.optim.orthogonal import orthogonalise
from minigpt.optim.schedule import learning_rate

__all__ = [
    "AdamW",
    "Average",
    "Optimizer",
    "learning_rate",
    "make_optimizer",
    "orthogonalise",
    "parameter_groups",
]
