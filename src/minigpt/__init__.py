"""minigpt: train small language models, from text to chat, exactly reproducibly.

The public API on one screen. PyTorch is imported when something of it is first used.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minigpt.api import train
    from minigpt.config import Config, GenerationConfig, ModelConfig, RequestError, Section, WorkError, load_config
    from minigpt.data import DataSource
    from minigpt.inference import LoadedModel, load
    from minigpt.model import GPT
    from minigpt.objectives import PretrainObjective
    from minigpt.tokenizer import Tokenizer, load_tokenizer
    from minigpt.training import Callback, Logger, Trainer

__all__ = [
    "GPT",
    "Callback",
    "Config",
    "DataSource",
    "GenerationConfig",
    "LoadedModel",
    "Logger",
    "ModelConfig",
    "PretrainObjective",
    "RequestError",
    "Section",
    "Tokenizer",
    "Trainer",
    "WorkError",
    "load",
    "load_config",
    "load_tokenizer",
    "train",
]

_HOME = {
    "config": ("Config", "GenerationConfig", "ModelConfig", "RequestError", "Section", "WorkError", "load_config"),
    "data": ("DataSource",),
    "tokenizer": ("Tokenizer", "load_tokenizer"),
    "model": ("GPT",),
    "inference": ("LoadedModel", "load"),
    "objectives": ("PretrainObjective",),
    "training": ("Callback", "Logger", "Trainer"),
    "api": ("train",),
}

try:
    __version__ = version("minigpt")
except PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0.0.0"


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"minigpt.{module}"), name)
    raise AttributeError(f"module 'minigpt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
