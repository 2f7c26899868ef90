"""How long the documents of a text are: a histogram over lengths that double, since those of real text spread so."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigpt.data.dataset import TokenDataset

MAX_BINS = 24


@dataclass(frozen=True)
class Lengths:
    """Lengths of the documents of one source, in tokens, the end-of-text token included."""

    name: str
    values: NDArray[np.int64]

    @classmethod
    def of(cls, name: str, tokens: TokenDataset, *, is_whole: bool) -> "Lengths":
        """Those of a dataset; unless it is whole, its last document is left out, if there are others: it may be cut."""
        values = np.diff(np.append(tokens.document_offsets, len(tokens)))
        return cls(name, values if is_whole or len(values) < 2 else values[:-1])

    def described(self, edges: Sequence[int], context_length: int) -> dict[str, Any]:
        """As JSON: documents and tokens by bin, and what says most about the whole."""
        documents, _ = np.histogram(self.values, edges)
        tokens, _ = np.histogram(self.values, edges, weights=self.values)
        return {
            "name": self.name,
            "documents": documents.tolist(),
            "tokens": tokens.astype(np.int64).tolist(),
            "shortest": int(self.values.min()),
            "median": float(np.median(self.values)),
            "mean": float(self.values.mean()),
            "longest": int(self.values.max()),
            "longer_than_context": int((self.values > context_length).sum()),
        }


def histogram(sources: Sequence[Lengths], context_length: int) -> dict[str, Any]:
    """{"edges": [...], "sources": [...]} as JSON: bin i of each source is of lengths edges[i] ... edges[i+1] - 1."""
    edges = bin_edges(
        min(int(source.values.min()) for source in sources), max(int(source.values.max()) for source in sources)
    )
    return {"edges": edges, "sources": [source.described(edges, context_length) for source in sources]}


def bin_edges(shortest: int, longest: int) -> list[int]:
    """Edges of at most MAX_BINS bins (a few more for lengths beyond 2**24) from `shortest` to `longest`.

    A bin goes from a power of two to the next, or, where the lengths are close together, over a half or a quarter of
    that: context lengths, which are powers of two as a rule, are edges then.
    """
    low, high = shortest.bit_length() - 1, longest.bit_length()
    parts = next((n for n in (4, 2) if n * (high - low) <= MAX_BINS), 1)
    edges = sorted({(1 << k) + i * (1 << k) // parts for k in range(low, high) for i in range(parts)} | {1 << high})
    inside = [edge for edge in edges if shortest < edge <= longest]
    first = max(edge for edge in edges if edge <= shortest)
    last = min(edge for edge in edges if edge > longest)
    return [first, *inside, last]
