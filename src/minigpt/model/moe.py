"""A mixture of experts in place of a feed-forward layer (Shazeer et al. 2017; Fedus et al. 2021, Switch Transformers).

A router, one matrix, scores every expert for each token. The token goes through the `n_expert_used` best ones, and
their outputs are summed by weight. Shared experts (Dai et al. 2024, DeepSeekMoE) take every token besides. The router
computes in fp32, as Fedus et al. (section 2.4) found that it must.
"""

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import ModelConfig
from minigpt.model.autocast import no_autocast
from minigpt.model.experts import Experts
from minigpt.model.feedforward import build_mlp
from minigpt.model.routing import Routing, route


class MoE(nn.Module):
    """(B, T, C) to (B, T, C), each token by itself.

    Attributes:
        balance_bias: (E,) fp32, added to the scores of the choice alone (balance=bias); a buffer, saved with the
            weights, moved by `Routers.balance` and by no gradient.
        routing: how the last pass in training went; whoever takes it leaves None.
        total: sums over the processes that have the other tokens of the rows; None: all are here.
    """

    balance_bias: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.moe, self.dropout = config.moe, config.dropout
        self.router = nn.Linear(config.n_embd, config.moe.n_expert, bias=False)
        self.experts = Experts(config)
        self.shared = self.shared_gate = None
        if config.moe.n_shared:
            without_dropout = config.model_copy(update={"dropout": 0.0})  # it comes once, behind the sum
            self.shared = build_mlp(without_dropout, config.moe.n_shared * config.expert_size)
        if config.moe.n_shared and config.moe.shared_gate:
            self.shared_gate = nn.Linear(config.n_embd, 1, bias=False)
        bias = torch.zeros(config.moe.n_expert, dtype=torch.float32) if config.moe.balance == "bias" else None
        self.register_buffer("balance_bias", bias)
        self.routing: Routing | None = None
        self.total: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, C) to (B, T, C)."""
        tokens = x.flatten(0, -2)  # (N, C)
        scores, watched = self._scores(tokens), self._watched()
        chosen, weights, routing = route(scores, self.moe, self.balance_bias, watched, self.total)
        self.routing = routing
        outputs = self.experts(tokens, chosen)  # (N, k, C)
        y = (weights.to(outputs.dtype)[:, None] @ outputs).view_as(x)
        if self.shared is not None:
            shared = self.shared(x)
            y = y + (shared if self.shared_gate is None else torch.sigmoid(self.shared_gate(x)) * shared)
        return F.dropout(y, self.dropout, self.training)

    def once(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`function`, in whose first call alone this layer's `routing` is kept: the others make the same pass again."""
        calls = 0

        def call(*arguments: object) -> Tensor:
            nonlocal calls
            calls, kept = calls + 1, self.routing
            try:
                return function(*arguments)
            finally:
                if calls > 1:
                    self.routing = kept

        return call

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast everything, but keep the bias wide: rounded, it would choose other experts."""
        bias = self.balance_bias
        super()._apply(fn, recurse)
        if (
            bias is not None
            and self.balance_bias is not None
            and self.balance_bias.element_size() < bias.element_size()
        ):
            self.balance_bias = bias.to(self.balance_bias.device)
        return self

    def _scores(self, tokens: Tensor) -> Tensor:
        """(N, E), at least fp32."""
        weight = self.router.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        with no_autocast(weight.device):
            return F.linear(tokens.to(wide), weight.to(wide))

    def _watched(self) -> bool:
        """Whether the balance of this pass is of interest: in training only."""
        return self.training and torch.is_grad_enabled()
