"""Initial weights: GPT-2's (Radford et al. 2019, section 2.3; nanoGPT), and what changes with some options.

Projections into the residual stream that begin as zeros make each block the identity at first (Zhang et al. 2019,
"Fixup", arXiv:1901.09321; modded-nanogpt). A head of its own may begin small, so that the first predictions are nearly
uniform (nanochat).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from minigpt.config import ModelConfig

RESIDUAL = ("attention.out.weight", "mlp.down.weight", "experts.down", "shared.down.weight")
"""The projections that write into the residual stream."""
ZERO = ("bias", "input_scale.weight", "smear_scale.weight", "backout_scale.weight")
"""What begins as zeros; all other vectors begin as ones."""


@torch.no_grad()
def init_weights(model: nn.Module, config: ModelConfig, generator: torch.Generator | None = None) -> None:
    """Matrices from normal(0, init_std), residual projections from normal(0, init_std / sqrt(2 n_layer)) since
    2 n_layer of them add up; biases and buffers zero; norms one.

    Args:
        model: the network, or a part of it; its parameters are drawn in the order of `named_parameters()`.
        config: the architecture, with the options that begin with `init_`.
        generator: a CPU generator; None means torch's global one. Numbers are always drawn on the CPU in fp32, so the
            weights depend neither on the device nor on the dtype (but for rounding).
    """
    std = _standard_deviation(config)
    for name, parameter in model.named_parameters():
        if name.endswith(ZERO):
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            _draw(parameter, std(name), generator)
    for buffer in model.buffers():
        buffer.zero_()


def _standard_deviation(config: ModelConfig) -> Callable[[str], float]:
    """Of the matrix of a name."""
    scaled = config.init_std / math.sqrt(2 * config.n_layer)
    residual = 0.0 if config.init_residual == "zero" else scaled
    head = config.init_std if config.init_head_std is None else config.init_head_std

    def of(name: str) -> float:
        if name.endswith(RESIDUAL):
            return residual
        return head if name == "head.weight" else config.init_std

    return of


def _draw(parameter: Tensor, std: float, generator: torch.Generator | None) -> None:
    """Fill from normal(0, std)."""
    drawn = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
    parameter.copy_(drawn.normal_(0.0, std, generator=generator))
