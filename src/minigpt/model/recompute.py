"""Spends a little arithmetic to keep less: what is cheap to compute again is not stored for the backward pass.

The output of the feed-forward layer's activation is the widest tensor of a block, and its function the cheapest.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minigpt.model.autocast import compute_dtype, no_autocast
from minigpt.model.spread import Summand


def activated_down(activation: Callable[[Tensor], Tensor], x: Tensor, down: nn.Linear) -> Tensor:
    """down(activation(x)), of which only x is kept: x (..., D) to (..., C). The same numbers as without.

    activation: a function of x alone (no parameters, no random numbers) of any width in, `down`'s width out.
    """
    plain = type(down) in (nn.Linear, Summand)  # float8 has a layer of its own
    if torch.compiler.is_compiling() or not (plain and torch.is_grad_enabled() and x.requires_grad):
        return down(activation(x))  # the compiler decides by itself what to keep
    dtype = compute_dtype(down.weight)
    weight = down.weight.to(dtype)
    bias = None if down.bias is None or isinstance(down, Summand) else down.bias.to(dtype)
    y: Tensor = _ActivatedDown.apply(x, weight, bias, activation)
    return y


class _ActivatedDown(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, activation: Callable) -> Tensor:
        ctx.activation = activation
        ctx.save_for_backward(x, weight)
        with no_autocast(x.device):
            return F.linear(activation(x).to(weight.dtype), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            h = ctx.activation(x).to(weight.dtype)
        (dx,) = torch.autograd.grad(h, x, dy @ weight)
        rows = dy.flatten(0, -2)
        d_weight = rows.t() @ h.detach().flatten(0, -2) if ctx.needs_input_grad[1] else None
        return dx, d_weight, rows.sum(0) if ctx.needs_input_grad[2] else None, None
