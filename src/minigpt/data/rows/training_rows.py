"""From prepared tokens to training and validation rows, as a config has them: in what order, mixed, packed, masked.

Everything here is a pure function of a row's number: rows can be made anywhere, ahead of time, and again.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from minigpt.config import DataConfig, RequestError
from minigpt.data.dataset import TokenDataset
from minigpt.data.prepared import PreparedData
from minigpt.data.rows.masks import IGNORED, PADDING, Row, ends_documents, masked_row, plain_row, with_documents
from minigpt.data.rows.mixture import Mixture, make_mixture
from minigpt.data.rows.order import WindowOrder
from minigpt.data.rows.packing import DocumentPacking


class SourceRows(Protocol):
    """The rows of one source, without end."""

    rows_per_epoch: int
    full: bool
    """Whether every position has a target."""
    wasted: float
    """Share of the positions that packing leaves empty."""

    def row(self, index: int) -> Row:
        """Row number `index` of the source."""


class WindowRows:
    """Windows of the running text."""

    wasted = 0.0

    def __init__(self, tokens: TokenDataset, context_length: int, seed: int, data: DataConfig) -> None:
        self._tokens, self._length = tokens, context_length
        stretch = data.shuffle_tokens or tokens.stretch
        self.order = WindowOrder(len(tokens), context_length, seed, shuffle=data.shuffle, stretch=stretch)
        self.rows_per_epoch = self.order.windows_per_epoch
        self._mask = _Mask(tokens, data) if data.document_mask else None
        self.full = self._mask is None or self._mask.ends
        self._ahead = (0, 0)

    def row(self, index: int) -> Row:
        """`ids` and `targets` (T,), int64; with a document mask also `document_ids`, and `positions` if not restarted.

        Targets that cannot be predicted are IGNORED.
        """
        _, start = self.order.window(index)
        if self._tokens.stretch is not None:
            self._fetch_ahead(index)
        window = self._tokens.tokens(start, start + self._length + 1).astype(np.int64)
        return plain_row(window) if self._mask is None else self._mask.row(window, start)

    def _fetch_ahead(self, index: int) -> None:
        """Of a store, have the tokens that are read after these on their way."""
        ahead = self.order.next_stretch(index)
        if ahead is not None and ahead != self._ahead:
            self._ahead = ahead
            self._tokens.prefetch(*ahead)


class PackedRows:
    """Whole documents, fitted together. Raises RequestError if there is not a single token to predict."""

    def __init__(self, tokens: TokenDataset, context_length: int, seed: int, data: DataConfig) -> None:
        self._tokens, self._length, self._data = tokens, context_length, data
        starts = tokens.document_offsets
        self.packing = DocumentPacking(starts, len(tokens), context_length, ends=ends_documents(tokens))
        self.rows_per_epoch, self.wasted = self.packing.n_rows, self.packing.wasted
        self.full = self.wasted == 0
        if not self.packing.n_rows:
            raise RequestError(
                f"no document of {tokens.name} has a token to predict: there is nothing to pack into rows"
            )
        self._order = WindowOrder(self.packing.n_rows + 1, 1, seed)  # a row is a window of length 1 of a text of rows

    def row(self, index: int) -> Row:
        """As for WindowRows. What is left free at the end has IGNORED targets, and PADDING for its document."""
        ids = np.full(self._length, self._tokens.eot_id or 0, np.int64)
        targets = np.full(self._length, IGNORED, np.int64)
        documents = np.full(self._length, PADDING, np.int64)
        at = 0
        for document, start, stop in self.packing.pieces(self._order.window(index)[1]):
            tokens = self._tokens.tokens(start - 1, stop)
            here = slice(at, at + stop - start)
            ids[here], targets[here], documents[here] = tokens[:-1], tokens[1:], document
            at = here.stop
        row = {"ids": ids, "targets": targets}
        if not self._data.document_mask:
            return row
        return with_documents(row, documents, restart_positions=self._data.restart_positions)


class _Mask:
    """Adds the documents to the windows of a dataset."""

    def __init__(self, tokens: TokenDataset, data: DataConfig) -> None:
        self._tokens, self.ends, self._restart = tokens, ends_documents(tokens), data.restart_positions

    def row(self, window: np.ndarray, start: int) -> Row:
        documents = self._tokens.document_at(np.arange(start, start + len(window)))
        return masked_row(window, documents, ends=self.ends, restart_positions=self._restart)


class TrainingRows:
    """The training rows of one source, or of a mixture of several."""

    def __init__(self, sources: Sequence[SourceRows], mixture: Mixture | None = None) -> None:
        self.sources, self.mixture = tuple(sources), mixture
        self.names = () if mixture is None else mixture.names
        """The sources of a mixture; () where there is none."""
        self.rows_per_epoch = sum(source.rows_per_epoch for source in sources)
        """Rows after which all the text has been seen once; of a mixture, as many rows as its sources have together."""
        self.full = all(source.full for source in sources)
        """Whether every position of every row has a target."""

    def row(self, index: int) -> Row:
        """Training row number `index` (0, 1, 2, ... without end): arrays of shape (T,)."""
        if self.mixture is None:
            return self.sources[0].row(index)
        source, number = self.mixture.locate(index)
        return self.sources[source].row(number)

    def source(self, index: int) -> int:
        """Number of the source that row `index` is from."""
        return 0 if self.mixture is None else self.mixture.locate(index)[0]

    def epochs(self, rows: int) -> list[float]:
        """How often the first `rows` rows go through each source."""
        counts = (rows,) if self.mixture is None else self.mixture.counts(rows)
        return [count / source.rows_per_epoch for count, source in zip(counts, self.sources, strict=True)]

    @property
    def wasted(self) -> list[float]:
        """Share of the positions of each source's rows that packing leaves empty."""
        return [source.wasted for source in self.sources]

    def describe(self) -> list[dict[str, Any]]:
        """The mixture by stage: `counts[i]` of every `block_rows` rows from `first_row` on are from `names[i]`."""
        stages = [] if self.mixture is None else self.mixture.stages
        return [
            {
                "first_row": stage.first_row,
                "names": list(self.names),
                "weights": list(stage.weights),
                "counts": list(stage.counts),
                "block_rows": stage.block_rows,
            }
            for stage in stages
        ]


def plain_rows(tokens: TokenDataset, *, context_length: int, seed: int) -> TrainingRows:
    """Windows of one text in random order."""
    return TrainingRows([WindowRows(tokens, context_length, seed, DataConfig())])


def make_rows(
    prepared: PreparedData,
    data: DataConfig,
    *,
    context_length: int,
    seed: int,
    batch_rows: int,
    max_steps: int | None,
    first_row: Callable[[int], int] | None = None,
) -> TrainingRows:
    """The training rows that a config asks for.

    batch_rows: rows in an optimizer step. max_steps: the run's length, None if that is not known yet (stages that begin
    at a fraction of it are left out then). first_row: where the rows of a step begin, if not all have `batch_rows`.
    RequestError: a text is too short, a stage cannot be, or the run would
    repeat a source more often than data.max_epochs allows.
    """
    kind = PackedRows if data.packing == "documents" else WindowRows
    if not data.is_mixture:
        return TrainingRows([kind(prepared.sources[0].train, context_length, seed, data)])
    names = [source.name for source in prepared.sources]
    mixture = make_mixture(
        data, names, [source.weight for source in prepared.sources],
        batch_rows=batch_rows, seed=seed, max_steps=max_steps, first_row=first_row,
    )  # fmt: skip
    sources = [
        kind(source.train, context_length, _seed_of_source(seed, source.name), data) for source in prepared.sources
    ]
    rows = TrainingRows(sources, mixture)
    if data.max_epochs is not None and max_steps is not None:
        total = max_steps * batch_rows if first_row is None else first_row(max_steps + 1)
        _require_epochs(rows, data.max_epochs, total)
    return rows


def _seed_of_source(seed: int, name: str) -> int:
    """Every source of a mixture has an order of its own, whatever its place in the list."""
    return int.from_bytes(hashlib.sha256(f"minigpt source {seed} {name}".encode()).digest()[:8], "little")


def _require_epochs(rows: TrainingRows, limit: float, total: int) -> None:
    assert rows.mixture is not None
    for name, source, count, epochs in zip(
        rows.names, rows.sources, rows.mixture.counts(total), rows.epochs(total), strict=True
    ):
        if epochs > limit:
            raise RequestError(
                f"the run takes {count:,} rows of {name}, which has {source.rows_per_epoch:,}: {epochs:.3g} epochs, "
                f"more than data.max_epochs={limit:g}; lower its weight, give more text, or shorten the run"
            )


class ValidationRows:
    """Consecutive windows of each validation set that share no target: they predict each token but the first once.

    sets: (name, tokens). max_tokens: about so many tokens in all, in windows spread evenly over each set (None: all).
    """

    def __init__(
        self, sets: Sequence[tuple[str, TokenDataset]], data: DataConfig, *, context_length: int, max_tokens: int | None
    ) -> None:
        self._length = context_length
        self._tokens = [tokens for _, tokens in sets]
        self._masks = [_Mask(tokens, data) if data.document_mask else None for tokens in self._tokens]
        self._windows = [math.ceil((len(tokens) - 1) / context_length) for tokens in self._tokens]
        total = sum(self._windows)
        limit = total if max_tokens is None else min(total, math.ceil(max_tokens / context_length))
        self.sets: list[tuple[str, range]] = []
        """(name, numbers of its rows) of each set."""
        first = 0
        for (name, _), windows in zip(sets, self._windows, strict=True):
            count = max(1, limit * windows // total) if windows else 0
            self.sets.append((name, range(first, first + count)))
            first += count

    def __len__(self) -> int:
        return self.sets[-1][1].stop if self.sets else 0

    def row(self, index: int) -> Row:
        """Row number `index`, as those of training; the last one of a set may be shorter."""
        number = next(n for n, (_, rows) in enumerate(self.sets) if index in rows)
        tokens, mask, rows = self._tokens[number], self._masks[number], self.sets[number][1]
        start = (index - rows.start) * self._windows[number] // len(rows) * self._length
        window = tokens.tokens(start, min(start + self._length + 1, len(tokens))).astype(np.int64)
        return plain_row(window) if mask is None else mask.row(window, start)
