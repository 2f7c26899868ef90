"""The objective that a config asks for."""

from typing import Any

from minigpt.config import Config
from minigpt.config.extension import build
from minigpt.data import PreparedData
from minigpt.objectives.base import Objective
from minigpt.objectives.pretrain import PretrainObjective
from minigpt.tokenizer import Tokenizer


def make_objective(config: Config, data: PreparedData, tokenizer: Tokenizer) -> Objective:
    """The meaning of the rows: one of the package's, or the user's own `Class(config, **the same arguments)`.

    Raises RequestError for a class that cannot be used.
    """
    given: dict[str, Any] = {
        "train": data.train,
        "validation": data.val,
        "context_length": config.model.context_length,
        "seed": config.run.seed,
        "tokenizer": tokenizer,
        "validation_tokens": config.evaluation.max_tokens,
    }
    if config.objective.kind in config.objective.BUILT_IN:
        return PretrainObjective(**given)
    made: Objective = build(config.objective, Objective, "objective", **given)
    return made
