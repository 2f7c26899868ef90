"""The key/value cache of a batch of rows, and the plan of one forward pass over it.

A token at absolute position p lives in slot p of its row; rows may have different lengths. `KVCache` knows how long
each row is; what a layer keeps for its tokens belongs to that layer's attention (`LayerCache` is full attention's).
How long the rows are is tracked on the host, so that continuing them never waits for the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Span:
    """Where the T tokens of one forward pass stand and what they may see; one for all layers."""

    positions: Tensor
    """(B or 1, T) int64, absolute; never negative (padding is put at 0, which is harmless since none sees it)."""
    mask: Tensor | None = None
    """(B or 1, 1, T, S) bool, True where query t may see slot s; None: see `causal`."""
    documents: Tensor | None = None
    """(B, T) integers, where the mask says no more than that tokens see those before them of the same number."""
    causal: bool = True
    """Without a mask: token t sees tokens up to t of this pass (True), or everything stored (False)."""
    start: int | None = 0
    """First slot of the pass when all rows agree on it, else None."""
    stop: int = 0
    """Slots below this one hold all that can be seen after the pass."""
    slots: Tensor | None = None
    """(B, T) int64, where each token is stored; only when rows disagree."""
    lengths: tuple[int, ...] = ()
    """Each row's length after the pass."""


class LayerCache:
    """Full attention's part: keys and values of every position.

    Args:
        batch, n_kv_head, length, head_dim: the sizes; `length` counts tokens.
        dtype, device: of the stored tensors.
    """

    def __init__(
        self, batch: int, n_kv_head: int, length: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        with torch.inference_mode(False):  # so that a cache made while generating can be written to outside as well
            # one slot more than asked for: padding is written there, and nothing ever reads it
            shape = (batch, n_kv_head, length + 1, head_dim)
            self.k = torch.zeros(shape, dtype=dtype, device=device)
            self.v = torch.zeros(shape, dtype=dtype, device=device)

    def update(self, k: Tensor, v: Tensor, span: Span) -> tuple[Tensor, Tensor]:
        """Store the pass's keys and values (B, Hkv, T, D), without gradients; return all visible (B, Hkv, S, D)."""
        if span.slots is not None:
            rows = torch.arange(k.size(0), device=k.device)[:, None]
            for store, new in ((self.k, k), (self.v, v)):
                store[rows, :, span.slots] = new.detach().transpose(1, 2).to(store.dtype)  # (B, T, Hkv, D)
        else:
            for store, new in ((self.k, k), (self.v, v)):
                store[:, :, span.start : span.stop] = new.detach()
            if span.start == 0:
                return k, v
        return self.k[:, :, : span.stop].to(k.dtype), self.v[:, :, : span.stop].to(v.dtype)

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or reorder rows: rows (B',) int64."""
        with torch.inference_mode(False):
            self.k, self.v = self.k[rows], self.v[rows]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.k.nbytes + self.v.nbytes


class KVCache:
    """The cache of a whole model, made by `GPT.make_cache`.

    Args:
        layers: each layer's part.
        batch: number of rows.
        length: most tokens that a row can hold.
        device: where the parts live.
    """

    def __init__(self, layers: list[LayerCache], batch: int, length: int, device: torch.device) -> None:
        self.layers, self.length, self.device = layers, length, device
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
        mask = None
        if start > 0 and stop - start > 1:
            mask = self._visible(positions, stop)
        return Span(positions, mask, causal=start == 0, start=start, stop=stop, lengths=lengths)

    def _ragged(
        self, starts: list[int], n_tokens: int, positions: Tensor | None, stop: int, lengths: tuple[int, ...]
    ) -> Span:
        """Rows of different lengths, or with padding."""
        if positions is None:
            positions = torch.tensor(starts)[:, None] + torch.arange(n_tokens)  # (B, T)
        positions = positions.to(self.device)
        slots = torch.where(positions < 0, self.length, positions)
        positions = positions.clamp(min=0)
        mask = self._visible(positions, stop)
        return Span(positions, mask, causal=False, start=None, stop=stop, slots=slots, lengths=lengths)

    def _visible(self, positions: Tensor, stop: int) -> Tensor:
        """(B or 1, 1, T, stop): a query sees the slots up to its own position."""
        return torch.arange(stop, device=self.device) <= positions[:, None, :, None]
