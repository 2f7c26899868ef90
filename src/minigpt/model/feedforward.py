"""The feed-forward layer: plain (Vaswani et al. 2017) or gated (Shazeer 2020, "GLU Variants Improve Transformer").

One of your own is a `torch.nn.Module` in a file of yours, made as `Class(config, model=ModelConfig)`, that takes
(B, T, C) to (B, T, C), each position by itself. Its weights follow the rules of all others: matrices are drawn from
normal(0, init_std) (smaller if called `down.weight`, since that writes into the residual stream, or zero if
`init_residual` says so), vectors begin as ones, and as zeros if their name ends with `bias`.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import ModelConfig, RequestError
from minigpt.config.extension import Extension, build
from minigpt.model.init import init_weights
from minigpt.model.recompute import activated_down

Activation = Callable[[Tensor], Tensor]


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al. 2021, Primer)."""
    return F.relu(x).square()


class MLP(nn.Module):
    """down(activation(up(x))), through `inner` dimensions."""

    def __init__(self, config: ModelConfig, activation: Activation, inner: int) -> None:
        super().__init__()
        self.up = nn.Linear(config.n_embd, inner, bias=config.has_mlp_bias)
        self.down = nn.Linear(inner, config.n_embd, bias=config.has_mlp_bias)
        self.activation = activation
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, C) to (B, T, C)."""
        return F.dropout(activated_down(self.activation, self.up(x), self.down), self.dropout, self.training)


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)). One product does both: the rows of `gate_up` are the gate's, then up's."""

    def __init__(self, config: ModelConfig, activation: Activation, inner: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.n_embd, 2 * inner, bias=config.has_mlp_bias)
        self.down = nn.Linear(inner, config.n_embd, bias=config.has_mlp_bias)
        self.activation = partial(gated, activation)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, C) to (B, T, C)."""
        return F.dropout(activated_down(self.activation, self.gate_up(x), self.down), self.dropout, self.training)


def gated(activation: Activation, x: Tensor) -> Tensor:
    """activation(gate) * up: (..., 2 * inner), the gate first, to (..., inner)."""
    gate, up = x.chunk(2, dim=-1)
    return activation(gate) * up


gelu_tanh = partial(F.gelu, approximate="tanh")
"""GPT-2's approximation of GELU."""

MLPS: dict[str, tuple[type[MLP] | type[GatedMLP], Activation]] = {
    "swiglu": (GatedMLP, F.silu),
    "geglu": (GatedMLP, F.gelu),  # the exact GELU (erf)
    "geglu_tanh": (GatedMLP, gelu_tanh),  # Gemma's
    "gelu": (MLP, F.gelu),
    "gelu_tanh": (MLP, gelu_tanh),
    "relu": (MLP, F.relu),  # the first transformer's
    "relu2": (MLP, relu2),
}


def build_mlp(config: ModelConfig, inner: int | None = None) -> nn.Module:
    """The feed-forward layer that `config.mlp` names, of width `inner` (None: the config's).

    Raises:
        RequestError: one of the user's own that cannot be.
    """
    if isinstance(config.mlp, Extension):
        return _own_mlp(config.mlp, config)
    kind, activation = MLPS[config.mlp]
    return kind(config, activation, config.inner_size if inner is None else inner)


def _own_mlp(own: Extension, config: ModelConfig) -> nn.Module:
    part: nn.Module = build(own, nn.Module, "model.mlp", model=config)
    for name, _ in part.named_buffers():
        raise RequestError(
            f"model.mlp: {own.kind} keeps {name} in a buffer, which the drawing of the weights leaves out: "
            "make it a parameter, or compute it in forward"
        )
    return part


def count_mlp_parameters(config: ModelConfig) -> int:
    """Number of parameters of a feed-forward layer, found by making one of no memory (on the meta device)."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_mlp(config).parameters())


def check_mlp(config: ModelConfig) -> None:
    """RequestError unless a feed-forward layer of the user's own takes (B, T, C) to (B, T, C), positions apart."""
    kind = config.mlp.kind if isinstance(config.mlp, Extension) else config.mlp
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        part = build_mlp(config).eval()
        drawn = config.model_copy(update={"init_residual": "scaled"})  # zeros would tell nothing
        init_weights(part, drawn, torch.Generator().manual_seed(0))
        x = torch.randn(2, 3, config.n_embd, generator=torch.Generator().manual_seed(0))  # (B, T, C)
        try:
            y, alone = part(x), [part(x[:, t : t + 1]) for t in range(3)]
        except Exception as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise RequestError(f"model.mlp: {kind} fails on an input of shape {tuple(x.shape)}: {said}") from error
    if not isinstance(y, Tensor) or y.shape != x.shape:
        given = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise RequestError(f"model.mlp: {kind} gives {given} for an input of shape {tuple(x.shape)}: it must be that")
    if not torch.allclose(y, torch.cat(alone, dim=1), rtol=0, atol=1e-4 * float(y.abs().max())):
        raise RequestError(
            f"model.mlp: {kind} mixes the positions of a row, which only attention may do: "
            "a position would see the tokens that it is to predict"
        )
