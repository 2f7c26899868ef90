"""One block: attention and a feed-forward layer, each adding to the residual stream.

Where the normalisations stand is a choice: in front of each sub-layer (GPT-2; Xiong et al. 2020, arXiv:2002.04745), on
what it adds (OLMo 2: OLMo Team 2024, arXiv:2501.00656, section 3.3), or both (Gemma 2: arXiv:2408.00118, section 2). So
is whether the feed-forward layer reads the stream after attention or beside it (Wang & Komatsuzaki 2021, GPT-J), and by
what number both are multiplied (Granite; muP's depth scaling, Yang et al. 2023, arXiv:2310.02244).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from minigpt.config import ModelConfig
from minigpt.model.attention import build_attention
from minigpt.model.cache import LayerCache
from minigpt.model.checkpointing import Recompute
from minigpt.model.feedforward import build_mlp
from minigpt.model.moe import MoE
from minigpt.model.norm import build_norm
from minigpt.model.position import Rotation
from minigpt.model.span import Span

READ, ADDED = ("pre", "sandwich"), ("post", "sandwich")
"""Places of norms: on what a sub-layer reads, on what it adds."""


class Block(nn.Module):
    """Block number `layer` (from 0)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()

        def norm_at(places: tuple[str, ...]) -> nn.Module:
            return build_norm(config) if config.norm_place in places else nn.Identity()

        self.attention_norm = norm_at(READ)
        self.attention = build_attention(config, layer)
        self.attention_post_norm = norm_at(ADDED)
        self.mlp_norm = norm_at(READ)
        self.mlp = MoE(config) if config.has_experts(layer) else build_mlp(config)
        self.mlp_post_norm = norm_at(ADDED)
        self.parallel, self.multiplier = config.parallel_residual, config.residual_multiplier
        self.recompute: Recompute | None = None
        self._compiled: Callable[..., Tensor] | None = None

    def forward(self, x: Tensor, span: Span, rotation: Rotation | None, cache: LayerCache | None = None) -> Tensor:
        """x: (B, T, C) to (B, T, C)."""
        if self.recompute is None or not (self.training and torch.is_grad_enabled()):
            return self._through(x, span, rotation, cache)
        through = self._compiled or self._through
        return self.recompute(self.mlp.once(through) if isinstance(self.mlp, MoE) else through, x, span, rotation)

    def compile(self, *arguments: Any, **options: Any) -> None:
        """As `torch.compile`. Experts cut a compilation in pieces, which lie in what is made twice, not around it."""
        if self.recompute is not None and isinstance(self.mlp, MoE):
            self._compiled = torch.compile(self._through, *arguments, **options)
        else:
            super().compile(*arguments, **options)

    def _through(self, x: Tensor, span: Span, rotation: Rotation | None, cache: LayerCache | None = None) -> Tensor:
        attended = self.attention_post_norm(self.attention(self.attention_norm(x), span, rotation, cache))
        with_attention = x + scaled(attended, self.multiplier)
        read = x if self.parallel else with_attention
        return with_attention + scaled(self.mlp_post_norm(self.mlp(self.mlp_norm(read))), self.multiplier)


def scaled(x: Tensor, factor: float) -> Tensor:
    """x * factor, and no work for a factor of 1."""
    return x if factor == 1 else x * factor
