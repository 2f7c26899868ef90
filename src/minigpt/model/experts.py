"""The experts of one layer: feed-forward networks of which each token goes through its own few, and none is dropped.

The (token, choice) pairs are sorted by expert, so that each expert multiplies one slice of rows, however long it is
(Gale et al. 2022, "MegaBlocks", section 4): no capacity, no padding. As in a dense layer (`minigpt.model.recompute`)
what is cheap to compute again is not stored for the backward pass: neither the activation's output nor the sorted
copies of the tokens, which would take `n_expert_used` times the memory of the tokens themselves.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minigpt.config import ModelConfig
from minigpt.config.model import GATED
from minigpt.model.autocast import compute_dtype, no_autocast
from minigpt.model.feedforward import MLPS, gated

Activation = Callable[[Tensor], Tensor]


class Experts(nn.Module):
    """All experts of a layer, their weights stacked: `gate_up` (E, 2 * inner, C) or `up` (E, inner, C), and `down`
    (E, C, inner). Each is a dense layer of `config.mlp` without biases, `config.expert_size` wide."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        n_expert, C, inner = config.moe.n_expert, config.n_embd, config.expert_size
        self.gated = config.mlp in GATED
        if self.gated:
            self.gate_up = nn.Parameter(torch.empty(n_expert, 2 * inner, C))
        else:
            self.up = nn.Parameter(torch.empty(n_expert, inner, C))
        self.down = nn.Parameter(torch.empty(n_expert, C, inner))
        assert isinstance(config.mlp, str)  # the config refuses experts of the user's own
        activation = MLPS[config.mlp][1]
        self.activation = partial(gated, activation) if self.gated else activation
        self._compute: Callable[..., Tensor] = _compute

    def stay_uncompiled(self) -> None:
        """Call it before the module around is compiled: only running shows how many rows each expert has."""
        self._compute = _uncompiled_compute()

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        """What each token's experts make of it.

        Args:
            x: (N, C) tokens.
            chosen: (N, k) int64, the different experts of each token.

        Returns:
            (N, k, C) in the order of `chosen`.
        """
        dtype = compute_dtype(self.down)
        x, first, down = x.to(dtype), (self.gate_up if self.gated else self.up).to(dtype), self.down.to(dtype)
        return self._compute(x, first, down, chosen, self.activation)


class SortedRows(NamedTuple):
    """The N * k pairs of a token and one of its experts, sorted by expert."""

    order: Tensor
    """(N * k,) int64: which pair each row is; pair n * k + j is choice j of token n."""
    tokens: Tensor
    """(N * k,) int64: the token of each row."""
    places: Tensor
    """(N * k,) int64: which row each pair is."""
    ends: Tensor
    """(E,) int32: where each expert's rows end, which is where the next one's begin."""


def sort_by_expert(chosen: Tensor, n_expert: int) -> SortedRows:
    """The rows of the pairs in `chosen` (N, k); those of one expert keep the order of the tokens."""
    experts, order = chosen.flatten().sort(stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(order.numel(), device=order.device)
    ends = torch.searchsorted(experts, torch.arange(n_expert, device=order.device), right=True, out_int32=True)
    return SortedRows(order, order // chosen.size(1), places, ends)


def has_grouped_product(weight: Tensor) -> bool:
    """Whether PyTorch has one kernel for the products of all experts, which also spares waiting for the device.

    On the CPU it is a loop over the experts as well, and knows no float64.
    """
    aligned = weight.size(1) % 8 == 0 and weight.size(2) % 8 == 0  # rows of a multiple of 16 bytes
    return weight.is_cuda and weight.dtype == torch.bfloat16 and aligned


def _compute(x: Tensor, first: Tensor, down: Tensor, chosen: Tensor, activation: Activation) -> Tensor:
    """`Experts.forward` with these weights, all of one dtype."""
    rows = sort_by_expert(chosen, first.size(0))
    grouped = has_grouped_product(first) and has_grouped_product(down)
    y: Tensor = _ExpertRows.apply(x, first, down, *rows, None if grouped else rows.ends.tolist(), activation)
    return y


@cache  # one function for all layers, so that they share a compilation; not a decorator, which imports the compiler
def _uncompiled_compute() -> Callable[..., Tensor]:
    return torch.compiler.disable(_compute)


class _ExpertRows(torch.autograd.Function):
    """down(activation(first(x))) for each row; keeps x and the first product."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        first: Tensor,
        down: Tensor,
        order: Tensor,
        tokens: Tensor,
        places: Tensor,
        ends: Tensor,
        slices: list[int] | None,
        activation: Activation,
    ) -> Tensor:
        ctx.activation, ctx.slices = activation, slices
        with no_autocast(x.device):
            hidden = _rows_times(x.index_select(0, tokens), first.transpose(1, 2), ends, slices)
            out = _rows_times(activation(hidden), down.transpose(1, 2), ends, slices)
        ctx.save_for_backward(x, first, down, order, tokens, places, ends, hidden)
        return out.index_select(0, places).view(x.size(0), -1, out.size(1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, first, down, order, tokens, places, ends, hidden = ctx.saved_tensors
        dy = dy.flatten(0, 1).index_select(0, order)
        with torch.enable_grad():
            hidden = hidden.detach().requires_grad_()
            activated = ctx.activation(hidden)
        (d_hidden,) = torch.autograd.grad(activated, hidden, _rows_times(dy, down, ends, ctx.slices))
        d_down = _outer(dy, activated.detach(), ends, ctx.slices) if ctx.needs_input_grad[2] else None
        d_first = _outer(d_hidden, x.index_select(0, tokens), ends, ctx.slices) if ctx.needs_input_grad[1] else None
        dx = None
        if ctx.needs_input_grad[0]:  # a sum over each token's experts in fixed order: the same bits every time
            dx = (
                _rows_times(d_hidden, first, ends, ctx.slices)
                .index_select(0, places)
                .view(len(x), -1, x.size(1))
                .sum(1)
            )
        return dx, d_first, d_down, None, None, None, None, None, None


def _rows_times(rows: Tensor, weights: Tensor, ends: Tensor, slices: list[int] | None) -> Tensor:
    """Each expert's rows times its matrix: (R, K) and (E, K, P) to (R, P)."""
    if slices is None:
        return F.grouped_mm(rows, weights, offs=ends)
    out = rows.new_empty(rows.size(0), weights.size(2))
    for expert, (start, end) in enumerate(zip([0, *slices], slices, strict=False)):
        if start < end:
            torch.mm(rows[start:end], weights[expert], out=out[start:end])
    return out


def _outer(a: Tensor, b: Tensor, ends: Tensor, slices: list[int] | None) -> Tensor:
    """The sum of the outer products of each expert's rows: (R, P) and (R, K) to (E, P, K), zeros without rows."""
    if slices is None:
        empty = ends.diff(prepend=ends.new_zeros(1)) == 0
        # the kernel writes nothing for experts without rows on some GPUs (pytorch/pytorch issue 172439)
        return F.grouped_mm(a.t(), b, offs=ends).masked_fill_(empty[:, None, None], 0)
    out = a.new_empty(len(slices), a.size(1), b.size(1))
    for expert, (start, end) in enumerate(zip([0, *slices], slices, strict=False)):
        torch.mm(a[start:end].t(), b[start:end], out=out[expert])
    return out
