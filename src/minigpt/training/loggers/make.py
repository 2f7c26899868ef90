"""The loggers that a config asks for."""

from collections.abc import Callable
from importlib import import_module

from minigpt.config import LoggersConfig, RequestError
from minigpt.config.extension import build
from minigpt.training.loggers.base import Logger
from minigpt.training.loggers.table import CsvLogger
from minigpt.training.loggers.tensorboard import TensorBoardLogger
from minigpt.training.loggers.trackio import TrackioLogger
from minigpt.training.loggers.wandb import WandbLogger, require_login


def make_loggers(config: LoggersConfig, say: Callable[[str], None]) -> list[Logger]:
    """The config's loggers, none of which has written anything yet.

    say: takes lines for people, from any thread. Raises RequestError if a package, an account, or a class of the
    user's own is missing.
    """
    made: list[Logger] = []
    if config.csv:
        made.append(CsvLogger())
    if config.tensorboard:
        _require("torch.utils.tensorboard", "loggers.tensorboard", "tensorboard")
        made.append(TensorBoardLogger())
    if config.wandb.enabled:
        _require("wandb", "loggers.wandb.enabled", "wandb")
        require_login(config.wandb)
        made.append(WandbLogger(config.wandb, say))
    if config.trackio.enabled:
        _require("trackio", "loggers.trackio.enabled", "trackio")
        made.append(TrackioLogger(config.trackio))
    return made + [build(own, Logger, f"loggers.own.{i}") for i, own in enumerate(config.own)]


def _require(module: str, key: str, extra: str) -> None:
    """Import an optional package here, where it can be refused, and not in the thread of its logger.

    Two threads that import at the same time may also meet half-made modules, and training imports late, too.
    Raises RequestError if it is not installed.
    """
    try:
        import_module(module)
    except ImportError as error:
        raise RequestError(
            f'{key} needs a package that is not there ({error}): pip install "minigpt[{extra}]", or set {key}=false'
        ) from error
