"""Initial weights: GPT-2's (Radford et al. 2019, section 2.3; nanoGPT)."""

import math

import torch
from torch import nn

RESIDUAL = ("attention.out.weight", "mlp.down.weight")
"""The projections that write into the residual stream."""


@torch.no_grad()
def init_weights(model: nn.Module, std: float, n_layer: int, generator: torch.Generator | None = None) -> None:
    """Matrices from normal(0, std), residual projections from normal(0, std / sqrt(2 n_layer)) since 2 n_layer of them
    add up; biases zero; norms one.

    Args:
        model: the network; its parameters are drawn in the order of `named_parameters()`.
        std: standard deviation.
        n_layer: number of blocks.
        generator: a CPU generator; None means torch's global one. Numbers are always drawn on the CPU in fp32, so the
            weights depend neither on the device nor on the dtype (but for rounding).
    """
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            scale = std / math.sqrt(2 * n_layer) if name.endswith(RESIDUAL) else std
            drawn = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
            parameter.copy_(drawn.normal_(0.0, scale, generator=generator))
