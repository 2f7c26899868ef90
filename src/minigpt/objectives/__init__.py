"""What a batch means: one objective for each stage of a model's life."""

from minigpt.objectives.base import IGNORED, Batch, Objective, Row, stack, valid_targets
from minigpt.objectives.pretrain import PretrainObjective

__all__ = ["IGNORED", "Batch", "Objective", "PretrainObjective", "Row", "stack", "valid_targets"]
