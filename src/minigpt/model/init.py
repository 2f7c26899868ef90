"""Initial weights: GPT-2's (Radford et al. 2019, section 2.3; nanoGPT), and what changes with some options.

Projections into the residual stream that begin as zeros make each block the identity at first (Zhang et al. 2019,
"Fixup", arXiv:1901.09321; modded-nanogpt). A head of its own may begin small, so that the first predictions are nearly
uniform (nanochat).
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from minigpt.config import ModelConfig

RESIDUAL = ("attention.out.weight", "mlp.down.weight", "experts.down", "shared.down.weight")
"""The projections that write into the residual stream."""
ZERO = ("bias", "input_scale.weight", "smear_scale.weight", "backout_scale.weight")
"""What begins as zeros; all other vectors begin as ones."""


@torch.no_grad()
def init_weights(model: nn.Module, config: ModelConfig, generator: torch.Generator | None = None) -> None:
    """Draw the weights of a network that is whole on this device (see `initial_tensors`); buffers become zero."""
    parameters = dict(model.named_parameters())
    for name, drawn in initial_tensors(model, config, generator):
        parameters[name].copy_(drawn)
    for buffer in model.buffers():
        buffer.zero_()


def initial_tensors(
    model: nn.Module, config: ModelConfig, generator: torch.Generator | None = None
) -> Iterator[tuple[str, Tensor]]:
    """The initial weights by name, one whole tensor (CPU, fp32) after the other.

    Matrices come from normal(0, init_std), residual projections from normal(0, init_std / sqrt(2 n_layer)) since
    2 n_layer of them add up; biases are zero; norms one.

    Args:
        model: the network, or a part of it, which may be on the meta device: only the names and shapes of its
            parameters are looked at, and they are drawn in the order of `named_parameters()`.
        config: the architecture, with the options that begin with `init_`.
        generator: a CPU generator; None means torch's global one. Numbers are always drawn on the CPU in fp32, so the
            weights depend neither on the device nor on the dtype (but for rounding), nor on who holds which part.
    """
    std = _standard_deviation(config)
    for name, parameter in model.named_parameters():
        whole = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
        if name.endswith(ZERO):
            whole.zero_()
        elif parameter.ndim == 1:
            whole.fill_(1.0)
        else:
            whole.normal_(0.0, std(name), generator=generator)
        yield name, whole


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
