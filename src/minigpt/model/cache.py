"""The key/value cache of a batch of rows.

A token at absolute position p lives in slot p of its row; rows may have different lengths. `KVCache` knows how long
each row is and plans each pass; what a layer keeps for its tokens belongs to that layer's attention (`LayerCache`: keys
and values, or the latent vectors that they are made from). How long the rows are is tracked on the host, so that
continuing them never waits for the device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minigpt.model.span import Span, View, visible


class LayerCache:
    """One layer's part: some vectors for every position, all positions kept (also where a window sees only the last).

    Args:
        batch: number of rows.
        heads: vectors of each kind that a token has.
        length: most tokens in a row.
        widths: of the kinds of vectors (keys and values: their widths).
        dtype, device: of the stored tensors.
    """

    def __init__(
        self, batch: int, heads: int, length: int, widths: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> None:
        with torch.inference_mode(False):  # so that a cache made while generating can be written to outside as well
            # one slot more than asked for: padding is written there, and nothing ever reads it
            shape = (batch, heads, length + 1)
            self.stores = [torch.zeros(*shape, width, dtype=dtype, device=device) for width in widths]

    def update(self, new: Sequence[Tensor], span: Span, first: int = 0) -> list[Tensor]:
        """Store the pass's vectors, without gradients.

        Args:
            new: (B, heads, T, width) of each kind.
            span: the pass.
            first: slots before this one are not asked for.

        Returns:
            All visible ones of each kind, (B, heads, S, width), in the dtype of the new ones.
        """
        if span.slots is not None:
            rows = torch.arange(len(span.slots), device=span.slots.device)[:, None]
            for store, part in zip(self.stores, new, strict=True):
                store[rows, :, span.slots] = part.detach().transpose(1, 2).to(store.dtype)  # (B, T, heads, width)
        else:
            for store, part in zip(self.stores, new, strict=True):
                store[:, :, span.start : span.stop] = part.detach()
            if span.start == 0:
                return list(new)
        return [store[:, :, first : span.stop].to(part.dtype) for store, part in zip(self.stores, new, strict=True)]

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or reorder rows: rows (B',) int64."""
        with torch.inference_mode(False):
            self.stores = [store[rows] for store in self.stores]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(store.nbytes for store in self.stores)


class KVCache:
    """The cache of a whole model, made by `GPT.make_cache`.

    Args:
        layers: each layer's part (after them, parts of whatever else in the model looks back).
        batch: number of rows.
        length: most tokens that a row can hold.
        device: where the parts live.
        window: tokens that layers with a short window see.
    """

    def __init__(
        self, layers: list[LayerCache], batch: int, length: int, device: torch.device, window: int | None = None
    ) -> None:
        self.layers, self.length, self.device, self.window = layers, length, device, window
        self.row_lengths: tuple[int, ...] = (0,) * batch

    @property
    def batch(self) -> int:
        """Number of rows."""
        return len(self.row_lengths)

    @property
    def lengths(self) -> Tensor:
        """(B,) int64: tokens held by each row."""
        return torch.tensor(self.row_lengths, dtype=torch.int64, device=self.device)

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers."""
        return sum(layer.nbytes for layer in self.layers)

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Empty these rows (None: all)."""
        emptied = range(self.batch) if rows is None else rows
        lengths = list(self.row_lengths)
        for row in emptied:
            lengths[row] = 0
        self.row_lengths = tuple(lengths)

    def select(self, rows: Tensor | Sequence[int]) -> None:
        """Keep, repeat or reorder rows; the batch becomes as long as `rows`."""
        chosen = rows.tolist() if isinstance(rows, Tensor) else list(rows)
        index = torch.tensor(chosen, dtype=torch.int64, device=self.device)
        for layer in self.layers:
            layer.select(index)
        self.row_lengths = tuple(self.row_lengths[row] for row in chosen)

    def plan(self, batch: int, n_tokens: int, positions: Tensor | None = None) -> Span:
        """Where the next tokens go and what they see. Nothing changes until `commit`.

        Args:
            batch: rows of the pass.
            n_tokens: tokens in each row (T), padding included.
            positions: (B, T) absolute positions, -1 for padding; None continues each row at its length. They are
                looked at on the host: keep them on the CPU to spare the device a wait. Going back to an earlier
                position forgets what the row held from there on.

        Raises:
            ValueError: wrong number of rows, positions with a gap, or more tokens than the cache holds.
        """
        if batch != self.batch:
            raise ValueError(f"the cache has {self.batch} rows but the ids have {batch}: make or select as many")
        if positions is None:
            starts, counts = list(self.row_lengths), [n_tokens] * batch
        else:
            starts, counts = self._runs(positions.cpu())
        lengths = tuple(start + count for start, count in zip(starts, counts, strict=True))
        stop = max(1, *lengths)  # one slot at least, so that rows of padding alone have something to look at
        if stop > self.length:
            raise ValueError(f"the cache holds {self.length} tokens a row but row {lengths.index(stop)} needs {stop}")
        if len(set(starts)) == 1 and min(counts) == n_tokens:
            return self._even(starts[0], stop, lengths)
        return self._ragged(starts, n_tokens, positions, stop, lengths)

    def commit(self, span: Span) -> None:
        """The pass that `plan` announced is done: the rows have their new lengths."""
        self.row_lengths = span.lengths

    def _runs(self, positions: Tensor) -> tuple[list[int], list[int]]:
        """First position and number of stored tokens of each row of (B, T); a row of padding alone stays as it is."""
        stored = positions >= 0
        counts = stored.sum(1)
        origin = positions - stored.cumsum(1) + 1  # the same for all stored tokens of a row that counts up by one
        lengths = torch.tensor(self.row_lengths)
        starts = torch.where(stored, origin, -1).amax(1).where(counts > 0, lengths)
        wrong = ((origin != starts[:, None]) & stored).any(1) | (starts > lengths)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"positions of row {row} must count up by one from at most {self.row_lengths[row]}, the tokens that it "
                f"holds (-1 for padding), but are {positions[row].tolist()}"
            )
        return starts.tolist(), counts.tolist()

    def _even(self, start: int, stop: int, lengths: tuple[int, ...]) -> Span:
        """All rows alike: slices instead of index lists, and no mask where SDPA can do without."""
        positions = torch.arange(start, stop, device=self.device)[None]
        full = self._view(positions, stop, None, start)
        short = full if self.window is None or self.window >= stop else self._view(positions, stop, self.window, start)
        return Span(positions, full, short, regular=start == 0, start=start, stop=stop, lengths=lengths)

    def _view(self, positions: Tensor, stop: int, window: int | None, start: int) -> View:
        """What the tokens from position `start` to `stop` see."""
        if start == 0 and window is None:
            return View()
        first = 0 if window is None or start == 0 else max(0, start + 1 - window)
        if stop - start == 1:
            return View(causal=False, first=first)
        keys = torch.arange(first, stop, device=self.device)
        return View(visible(positions, keys, window), first=first)

    def _ragged(
        self, starts: list[int], n_tokens: int, positions: Tensor | None, stop: int, lengths: tuple[int, ...]
    ) -> Span:
        """Rows of different lengths, or with padding."""
        if positions is None:
            positions = torch.tensor(starts)[:, None] + torch.arange(n_tokens)  # (B, T)
        positions = positions.to(self.device)
        padding = positions < 0
        slots = torch.where(padding, self.length, positions)
        positions = positions.clamp(min=0)
        full = short = View(visible(positions, torch.arange(stop, device=self.device)))
        if self.window is not None and self.window < stop:
            first = max(0, min(starts) + 1 - self.window)
            mask = visible(positions, torch.arange(first, stop, device=self.device), self.window)
            # the window of padding may lie before the first slot: with nothing at all to see, some kernels give NaN
            short = View(mask | padding[:, None, :, None], first=first)
        return Span(positions, full, short, start=None, stop=stop, slots=slots, lengths=lengths)
