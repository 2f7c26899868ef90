"""What the fastest recipes for small GPTs add outside of blocks (Jordan et al. 2024, modded-nanogpt; nanochat).

Each is off by default and works alone. Those that act inside attention (value embeddings) are with attention.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import ModelConfig
from minigpt.config.architecture import SMEAR_WIDTH
from minigpt.model.span import Span


class Scale(nn.Module):
    """Trained numbers by which parts of the residual stream are multiplied (what they begin at: see `init`)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))


class TokenCache:
    """The ids of all tokens of each row, from which the embedding of the one before is made again.

    Eight bytes a token instead of an embedding's width, and like the keys and values it may be gone back in.
    """

    def __init__(self, batch: int, length: int, device: torch.device) -> None:
        with torch.inference_mode(False):
            self.ids = torch.zeros(batch, length + 1, dtype=torch.int64, device=device)  # one more, for padding

    def previous(self, ids: Tensor, span: Span) -> Tensor:
        """Store ids (B, T); the id of the token before each one, (B, T), any where there is none."""
        if span.slots is None:
            self.ids[:, span.start : span.stop] = ids
        else:
            self.ids.scatter_(1, span.slots, ids)
        before = (span.positions - 1).clamp(min=0)  # (B or 1, T)
        return self.ids.gather(1, before.expand(ids.shape))

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or reorder rows: rows (B',) int64."""
        with torch.inference_mode(False):
            self.ids = self.ids[rows]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.ids.nbytes


def smear_gate(config: ModelConfig) -> nn.Linear:
    """From the first dimensions of an embedding to one number (nanochat reads as many)."""
    return nn.Linear(min(SMEAR_WIDTH, config.n_embd), 1, bias=False)


def before_each(x: Tensor, positions: Tensor | None, document_ids: Tensor | None) -> Tensor:
    """(B, T, C): for each token that of x (B, T, C) before it in its row; zeros for a row's or document's first.

    Args:
        positions: (B, T) int64, -1 for padding, which is passed over; None: there is no padding.
        document_ids: (B, T) int64; None: a row is one document.
    """
    if positions is None and document_ids is None:
        return F.pad(x, (0, 0, 1, 0))[:, :-1]
    index = torch.arange(x.size(1), device=x.device).expand(x.shape[:2])  # (B, T)
    stored = index if positions is None else torch.where(positions.to(x.device) >= 0, index, -1)
    before = F.pad(stored.cummax(dim=1).values, (1, 0), value=-1)[:, :-1]  # the last one stored before each, or -1
    here = before.clamp(min=0)
    has_one = before >= 0
    if document_ids is not None:
        has_one = has_one & (document_ids.gather(1, here) == document_ids)
    return x.gather(1, here[:, :, None].expand_as(x)) * has_one[:, :, None]
