"""The user's own classes of a run, looked at before anything else is done: what is wrong with them is said at once."""

from torch import nn

from minigpt.config import Config
from minigpt.config.extension import Extension, settled
from minigpt.data import settled_sources
from minigpt.model.feedforward import check_mlp
from minigpt.objectives import Objective
from minigpt.training.callbacks import Callback


def settle_extensions(config: Config) -> Config:
    """The config with the SHA-256 and every option of each class of the user's own that shapes what the run computes.

    Raises RequestError for one that is not there, cannot be imported, has other options, or is another file than the
    config was recorded with. (A logger is looked at where it is opened.)
    """
    update: dict[str, object] = {"data": settled_sources(config.data)}
    if config.objective.kind not in config.objective.BUILT_IN:
        update["objective"] = settled(config.objective, Objective, "objective")
    if isinstance(config.model.mlp, Extension):
        mlp = settled(config.model.mlp, nn.Module, "model.mlp")
        update["model"] = config.model.model_copy(update={"mlp": mlp})
        check_mlp(config.model)
    own = [settled(one, Callback, f"callbacks.own.{i}") for i, one in enumerate(config.callbacks.own)]
    update["callbacks"] = config.callbacks.model_copy(update={"own": own})
    return config.model_copy(update=update)
