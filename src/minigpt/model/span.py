"""The plan of one forward pass: where its tokens stand and what they may see. Made once, read by every layer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.model.position import Rotation


@dataclass
class View:
    """What the T tokens of a pass see of the S that are there."""

    mask: Tensor | None = None
    """(B or 1, 1, T, S) bool, True where query t may see token s; None: see `causal`."""
    causal: bool = True
    """Without a mask: token t sees tokens up to t of this pass (True), or all S (False)."""
    first: int = 0
    """The S tokens are those of the slots from this one to the span's `stop` (with a cache)."""


@dataclass
class Span:
    """Where the T tokens of one forward pass stand and what they may see; one for all layers."""

    positions: Tensor
    """(B or 1, T) int64, absolute; never negative (padding is put at 0, which is harmless since none sees it)."""
    full: View
    """In layers that see everything before."""
    short: View
    """In layers with a window (`full` itself where the window leaves nothing out)."""
    documents: Tensor | None = None
    """(B, T) integers: tokens see only those of the same number (with `regular`)."""
    regular: bool = False
    """Whether the views follow from the order of the tokens of this pass, `documents` and the window alone."""
    start: int | None = 0
    """First slot of the pass when all rows agree on it, else None."""
    stop: int = 0
    """Slots below this one hold all that can be seen after the pass; 0 without a cache."""
    slots: Tensor | None = None
    """(B, T) int64, where each token is stored; only when rows disagree."""
    lengths: tuple[int, ...] = ()
    """Each row's length after the pass."""
    ids: Tensor | None = None
    """(B, T) int64, the tokens (any valid id where there is padding), for layers with embeddings of their own."""
    local_rotation: Rotation | None = None
    """The rotation in layers with a window, where it is another than in the rest."""


def visible(queries: Tensor, keys: Tensor, window: int | None = None) -> Tensor:
    """(B or 1, 1, T, S) bool: the query at position p sees the keys at p - window + 1 ... p (None: all up to p).

    queries: (B or 1, T) positions. keys: (S) positions.
    """
    at = queries[:, None, :, None]
    seen = keys <= at
    return seen if window is None else seen & (keys > at - window)


def plan_pass(
    n_tokens: int,
    device: torch.device,
    longest: int,
    window: int | None = None,
    positions: Tensor | None = None,
    document_ids: Tensor | None = None,
) -> Span:
    """The span of a pass without a cache.

    Args:
        n_tokens: tokens in a row (T).
        device: where the masks go.
        longest: the model's context length.
        window: tokens that layers with a short window see.
        positions: (B, T) int64 absolute positions, -1 for padding.
        document_ids: (B, T) int64.

    Raises:
        ValueError: a position beyond the context.
    """
    index = torch.arange(n_tokens, device=device)
    window = None if window is None or window >= n_tokens else window
    if positions is None and document_ids is None:
        full = View()
        short = full if window is None else View(visible(index[None], index, window))
        return Span(index[None], full, short, regular=True)
    own_document = torch.ones((), dtype=torch.bool, device=device)
    if document_ids is not None:
        own_document = (document_ids[:, :, None] == document_ids[:, None, :])[:, None]  # (B, 1, T, T)
    if positions is None:
        assert document_ids is not None
        positions, regular, order = _positions_in_documents(document_ids, index), True, index[None]
        allowed = own_document
    else:
        if positions.device.type == "cpu" and positions.numel() and int(positions.max()) >= longest:
            raise ValueError(f"position {int(positions.max())} is beyond model.context_length={longest}")
        regular = positions.device.type == "cpu" and not bool((positions < 0).any())
        positions = positions.to(device)
        # padding is seen by none but itself: with nothing at all to see, some kernels give NaN
        allowed = own_document & ((positions >= 0)[:, None, None, :] | (index == index[:, None]))
        order = (positions >= 0).cumsum(1)  # windows do not count padding
        positions = positions.clamp(min=0)
    seen = visible(index[None], index) & allowed
    full = short = View(seen)
    if window is not None:
        short = View(seen & (order[:, None, :, None] - order[:, None, None, :] < window))
    return Span(positions, full, short, documents=document_ids, regular=regular)


def _positions_in_documents(document_ids: Tensor, index: Tensor) -> Tensor:
    """(B, T) positions that begin at 0 where a document does, so that each document is read as if it stood alone."""
    first = torch.ones_like(document_ids, dtype=torch.bool)
    first[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return index - torch.where(first, index, 0).cummax(dim=1).values
