"""Recomputing the activation keeps less and changes nothing."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.model.feedforward import relu2
from minigpt.model.recompute import activated_down


def gated(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("activation", "width"), [(F.gelu, 24), (relu2, 24), (gated, 48)])
def test_bit_equal_to_the_plain_composition(activation: Callable, width: int, bias: bool, amp: bool) -> None:
    torch.manual_seed(0)
    down, x = nn.Linear(24, 8, bias=bias), torch.randn(3, 5, width)
    results = []
    for function in (lambda x: down(activation(x)), lambda x: activated_down(activation, x, down)):
        leaf = x.to(torch.bfloat16 if amp else torch.float32).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            y = function(leaf)
        grads = torch.autograd.grad(y.float().square().sum(), [leaf, *down.parameters()])
        results.append([y, *grads])
    for plain, mine in zip(*results, strict=True):
        assert plain.dtype == mine.dtype and torch.equal(plain, mine)


def test_gradients_by_finite_differences() -> None:
    down = nn.Linear(6, 3).double()
    x = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: activated_down(gated, x, down), (x, *down.parameters()))


def test_the_activation_is_not_kept() -> None:
    down, x = nn.Linear(100, 2), torch.randn(50, 100, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        activated_down(F.gelu, x, down)
    assert [t for t in kept if t.shape == x.shape and not torch.equal(t, x)] == []


def test_frozen_weights_and_no_gradient_at_all() -> None:
    down, x = nn.Linear(4, 2).requires_grad_(False), torch.randn(3, 4, requires_grad=True)
    activated_down(F.gelu, x, down).sum().backward()
    assert x.grad is not None and down.weight.grad is None
    with torch.no_grad():
        assert torch.equal(activated_down(F.gelu, x, down), down(F.gelu(x)))
