"""The embedding and the head, of whose rows every process has some: no process ever has all logits of a token.

A softmax over all needs of each process only its largest logit and the sum of its exponentials (Shoeybi et al. 2019,
Megatron-LM, arXiv:1909.08053, section 3): three numbers a token travel, not a vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.model.loss import IGNORED, Vocabulary
from minigpt.parallel.collectives import Team


class SharedVocabulary(Vocabulary):
    """The tokens from number `first` on are in this process's columns; the others have the others.

    size: columns of the whole head, padding included.
    """

    def __init__(self, team: Team, first: int, size: int) -> None:
        self.team, self.first = team, first
        self.columns = -(-size // team.size)

    def here(self, vocab_size: int, columns: int) -> int:
        """How many of the local columns stand for tokens."""
        return min(max(0, vocab_size - self.first), columns)

    def log_softmax(self, logits: Tensor, dtype: torch.dtype) -> Tensor:
        """(n, v) logits of the tokens here to their log-probabilities among all."""
        logits = logits.to(dtype)
        lowest = torch.full((logits.size(0),), -torch.inf, dtype=dtype, device=logits.device)
        largest = self.team.max(logits.amax(1) if logits.size(1) else lowest)[:, None]
        total = self.team.sum((logits - largest).exp_().sum(1))[:, None]
        return logits - (largest + total.log())

    def picked(self, values: Tensor, targets: Tensor) -> Tensor:
        """(n,) the value (n, v) of each target, from the process that has it; 0 where it is ignored."""
        local, here = self._local(targets, values.size(1))
        if not values.size(1):
            return self.team.sum(values.new_zeros(len(targets)))
        return self.team.sum(values.gather(1, local[:, None]).squeeze(1) * here)

    def subtract_one(self, values: Tensor, targets: Tensor) -> None:
        """Take 1 off the value (n, v) of each target that is here."""
        local, here = self._local(targets, values.size(1))
        if values.size(1):
            values[torch.arange(len(local), device=values.device), local] -= here.to(values.dtype)

    def _local(self, targets: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """(n,) the columns of the targets, and whether they are here (any column where not)."""
        local = targets - self.first
        here = (targets != IGNORED) & (local >= 0) & (local < width)
        return local.where(here, 0), here


class SharedEmbedding(nn.Embedding):
    """ids to the vectors of all tokens; this process has those from row `first` on.

    weight: (v, E) its rows.
    """

    def __init__(self, weight: Tensor, team: Team, first: int) -> None:
        super().__init__(weight.size(0), weight.size(1), _weight=weight)
        self.team, self.first = team, first

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) to (B, T, E)."""
        local = ids - self.first
        here = (local >= 0) & (local < self.num_embeddings)
        return self.team.sum(F.embedding(local.where(here, 0), self.weight) * here[..., None])
