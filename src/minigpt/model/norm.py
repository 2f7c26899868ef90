"""Normalisation of the last dimension: RMSNorm (Zhang & Sennrich 2019) and LayerNorm (Ba et al. 2016)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import ModelConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight. Never has a bias."""

    def __init__(self, width: int, eps: float, bias: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., width) to the same shape and dtype."""
        # the fused kernel wants one dtype; under autocast the queries and keys are narrower than the weight
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight, plus a bias if asked for."""

    def __init__(self, width: int, eps: float, bias: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., width) to the same shape and dtype."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


NORMS: dict[str, type[RMSNorm] | type[LayerNorm]] = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}


def build_norm(config: ModelConfig) -> nn.Module:
    """The normalisation in front of a sub-layer and of the head, over `n_embd`."""
    return NORMS[config.norm](config.n_embd, config.norm_eps, config.bias)
