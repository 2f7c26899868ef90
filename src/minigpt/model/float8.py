"""Products of the blocks in float8, for GPUs that have them (Micikevicius et al. 2022, "FP8 Formats for Deep Learning",
arXiv:2209.05433): torchao rounds inputs, weights and gradients, each tensor scaled to its own largest value. The
weights themselves stay as they are, and so do the head, the embeddings and the routers of experts.
"""

import importlib
import importlib.util
from typing import Any

import torch
from torch import nn

from minigpt.config import RequestError

MULTIPLE = 16
"""What the sides of a matrix must be a multiple of, for the hardware's float8 products."""
OLDEST = (8, 9)
"""Compute capability from which on NVIDIA's GPUs have float8 products (Ada; Hopper is 9.0)."""


def require_float8(device: torch.device) -> None:
    """RequestError unless training.float8=true is possible on this device."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < OLDEST:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        raise RequestError(
            "training.float8=true needs a GPU with float8 products (Hopper or newer), which "
            f"{name} has not: leave it out"
        )
    if importlib.util.find_spec("torchao") is None:
        raise RequestError("training.float8=true needs torchao: pip install 'minigpt[float8]', or leave it out")


def use_float8(blocks: nn.Module, **options: Any) -> int:
    """Turn the linear layers of the blocks whose sides allow it; returns how many these are.

    Names and values of the parameters stay. options: for torchao's `Float8LinearConfig`.
    """
    torchao = importlib.import_module("torchao.float8")

    def possible(module: nn.Module, name: str) -> bool:
        sides = getattr(module, "in_features", 1), getattr(module, "out_features", 1)
        return not name.endswith("router") and all(side % MULTIPLE == 0 for side in sides)

    before = [type(module) for module in blocks.modules()]
    config = torchao.Float8LinearConfig(**options)
    torchao.convert_to_float8_training(blocks, module_filter_fn=possible, config=config)
    return sum(type(module) is not kind for module, kind in zip(blocks.modules(), before, strict=True))
