"""The feed-forward layer: plain (Vaswani et al. 2017) or gated (Shazeer 2020, "GLU Variants Improve Transformer")."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import ModelConfig

Activation = Callable[[Tensor], Tensor]


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al. 2021, Primer)."""
    return F.relu(x).square()


class MLP(nn.Module):
    """down(activation(up(x)))."""

    def __init__(self, config: ModelConfig, activation: Activation) -> None:
        super().__init__()
        self.up = nn.Linear(config.n_embd, config.inner_size, bias=config.bias)
        self.down = nn.Linear(config.inner_size, config.n_embd, bias=config.bias)
        self.activation = activation
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, C) to (B, T, C)."""
        return F.dropout(self.down(self.activation(self.up(x))), self.dropout, self.training)


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)). One product does both: the rows of `gate_up` are the gate's, then up's."""

    def __init__(self, config: ModelConfig, activation: Activation) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.n_embd, 2 * config.inner_size, bias=config.bias)
        self.down = nn.Linear(config.inner_size, config.n_embd, bias=config.bias)
        self.activation = activation
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, C) to (B, T, C)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # (B, T, inner) each
        return F.dropout(self.down(self.activation(gate) * up), self.dropout, self.training)


MLPS: dict[str, tuple[type[MLP] | type[GatedMLP], Activation]] = {
    "swiglu": (GatedMLP, F.silu),
    "geglu": (GatedMLP, F.gelu),  # the exact GELU (erf)
    "gelu": (MLP, F.gelu),
    "gelu_tanh": (MLP, partial(F.gelu, approximate="tanh")),  # GPT-2's
    "relu2": (MLP, relu2),
}


def build_mlp(config: ModelConfig) -> nn.Module:
    """The feed-forward layer that `config.mlp` names."""
    kind, activation = MLPS[config.mlp]
    return kind(config, activation)
