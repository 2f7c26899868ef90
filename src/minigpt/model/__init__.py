"""The network and nothing else: no files, no command line. Importing this package does not import torch.

The names below are loaded when they are first used; `minigpt.model.count` needs no torch at all.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minigpt.model.cache import KVCache
    from minigpt.model.count import count_parameters, flops_per_token
    from minigpt.model.gpt import GPT
    from minigpt.model.loss import IGNORED, cross_entropy, token_losses

__all__ = ["GPT", "IGNORED", "KVCache", "count_parameters", "cross_entropy", "flops_per_token", "token_losses"]

_HOME = {
    "GPT": "gpt",
    "IGNORED": "loss",
    "KVCache": "cache",
    "count_parameters": "count",
    "cross_entropy": "loss",
    "flops_per_token": "count",
    "token_losses": "loss",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'minigpt.model' has no attribute {name!r}")
    return getattr(import_module(f"minigpt.model.{_HOME[name]}"), name)
