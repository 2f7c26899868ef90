"""What a batch means: one objective for each stage of a model's life."""

from minigpt.data.rows.masks import IGNORED, Row
from minigpt.objectives.base import Batch, Objective, stack, valid_targets
from minigpt.objectives.build import make_objective
from minigpt.objectives.pretrain import PretrainObjective

__all__ = ["IGNORED", "Batch", "Objective", "PretrainObjective", "Row", "make_objective", "stack", "valid_targets"]
