"""Where the tokens of a row are, if they are spread over several processes: what the network then does otherwise.

The network asks only what is here; how processes do it (tensor and context parallel) is not its business.
"""

from typing import Protocol, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.model.loss import Vocabulary
from minigpt.model.span import Span

Maybe = TypeVar("Maybe", bound=Tensor | None)


class Spread(Protocol):
    """One process's view: between sub-layers it has `t` of the T tokens of each row, C numbers each."""

    vocabulary: Vocabulary
    """Which rows of the embedding and the head are here."""

    def pad(self, tokens: Maybe, value: int) -> Maybe:
        """(B, T) to (B, T'), with `value` behind, so that every process has equally many tokens; None to None."""

    def own(self, x: Tensor) -> Tensor:
        """(B, T, C) of all tokens to (B, t, C) of this process's."""

    def begin(self, span: Span, draws: bool) -> Span:
        """The span as the blocks of this process read it. draws: whether they will draw random numbers."""

    def before_head(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (B, t, E) of this process's tokens, and all targets (B, T), to those whose logits are computed
        here: (B, t', E) and (B, t')."""


class Summand(nn.Linear):
    """A product whose result is one of those that make a sum: whoever makes the sum adds the bias, once."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) to (..., out)."""
        return F.linear(x, self.weight)
