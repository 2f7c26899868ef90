"""Normalisation of the last dimension: RMSNorm (Zhang & Sennrich 2019) and LayerNorm (Ba et al. 2016).

Both can do without trained weights, as in OLMo (Groeneveld et al. 2024, arXiv:2402.00838, section 2.1).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import ModelConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight. Never has a bias."""

    def __init__(self, width: int, eps: float, weight: bool = True, bias: bool = False) -> None:
        super().__init__()
        self.shape, self.eps = (width,), eps
        self.weight = nn.Parameter(torch.ones(width)) if weight else None

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., width) to the same shape and dtype."""
        # the fused kernel wants one dtype; under autocast the queries and keys are narrower than the weight
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, self.shape, weight, self.eps)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight, plus a bias if asked for."""

    def __init__(self, width: int, eps: float, weight: bool = True, bias: bool = False) -> None:
        super().__init__()
        self.shape, self.eps = (width,), eps
        self.weight = nn.Parameter(torch.ones(width)) if weight else None
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., width) to the same shape and dtype."""
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


NORMS: dict[str, type[RMSNorm] | type[LayerNorm]] = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}


def build_norm(config: ModelConfig) -> nn.Module:
    """A normalisation of the residual stream, over `n_embd`, of the kind that `config.norm` names."""
    return NORMS[config.norm](config.n_embd, config.norm_eps, config.norm_weight, config.has_norm_bias)
