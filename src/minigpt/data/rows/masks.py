"""Rows of several documents: which document each position belongs to, so that no token sees another document.

A position predicts one target. It belongs to the document of its target: the end-of-text token in front of a document
is what its first token is predicted from, so it counts to the document that it begins, not to the one that it ends.
Where documents do not end with such a token, nothing can predict a document's first token; the position then belongs to
the document of its input, and the targets that are in another document are ignored.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigpt.data.dataset import TokenDataset

Row = dict[str, NDArray[Any]]
Numbers = NDArray[np.int64]

IGNORED = -100
"""A target that takes no part in the loss; PyTorch's default `ignore_index`."""

PADDING = -1
"""Document of the positions of a row that hold nothing."""


def plain_row(window: Numbers) -> Row:
    """Inputs `ids` and `targets` (T,) of a window of T + 1 tokens."""
    return {"ids": window[:-1], "targets": window[1:].copy()}  # a copy: who masks targets must not change the inputs


def masked_row(window: Numbers, documents: Numbers, *, ends: bool, restart_positions: bool) -> Row:
    """The same with `document_ids` (T,), and `positions` (T,) unless these restart, as the model has it by itself.

    documents: (T + 1,) the number of the document of each token. ends: whether each document ends with end-of-text.
    """
    row = plain_row(window)
    if not ends:
        row["targets"][documents[1:] != documents[:-1]] = IGNORED
    return with_documents(row, documents[1:] if ends else documents[:-1], restart_positions=restart_positions)


def with_documents(row: Row, document_ids: Numbers, *, restart_positions: bool) -> Row:
    """A row with the documents of its positions (T,)."""
    row["document_ids"] = document_ids
    if not restart_positions:
        row["positions"] = np.arange(len(document_ids))
    return row


def ends_documents(tokens: TokenDataset) -> bool:
    """Whether the documents of a dataset end with its end-of-text token; the first one's end is looked at."""
    begins = tokens.document_offsets
    first = int(np.searchsorted(begins, 0, side="right"))  # the first one that does not begin with the dataset
    if tokens.eot_id is None or first == len(begins):
        return False
    return int(tokens.tokens(int(begins[first]) - 1, int(begins[first]))[0]) == tokens.eot_id
