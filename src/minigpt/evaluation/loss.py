"""Mean cross-entropy of a token stream: the validation loss, perplexity and bits per byte.

The stream is cut into consecutive windows of `context_length` inputs; neighbours share one token (the last target of
one is the first input of the next), so every token but the very first is predicted exactly once, the last, shorter
window included. Tokens at the start of a window see little context: this is the quick measure that runs are compared
by, `perplexity.py` has the finer one.

Bits per byte = sum of -log2 p over the target tokens / UTF-8 bytes that they stand for. Unlike the loss it can be
compared across tokenizers. Special tokens stand for no bytes, but what predicting them costs is counted: it is part
of coding the stream.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from minigpt.config import RequestError
from minigpt.inference import evaluating
from minigpt.model import IGNORED

if TYPE_CHECKING:
    from minigpt.model import GPT


class Tokens(Protocol):
    """What is read of a dataset (`minigpt.data.TokenDataset` is one)."""

    def __len__(self) -> int:
        """Number of tokens."""

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """The ids from `start` to `stop` (exclusive), shape (stop - start,)."""


@dataclass(frozen=True)
class LossResult:
    """A measured loss."""

    loss: float
    """Mean over the target tokens, in nats."""
    tokens: int
    """Number of target tokens."""
    bytes: int | None
    """UTF-8 bytes of the target tokens; None if `byte_lengths` was not given."""

    @property
    def perplexity(self) -> float:
        """exp(loss); inf where that is too large for a float."""
        return exp_or_inf(self.loss)

    @property
    def bpb(self) -> float | None:
        """Bits per byte; None without byte counts, or if the targets stand for no bytes."""
        return bits_per_byte(self.loss * self.tokens, self.bytes)


def exp_or_inf(value: float) -> float:
    """e to the power of `value`; inf rather than OverflowError."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def bits_per_byte(nats: float, count: int | None) -> float | None:
    """A sum of losses in nats as bits per byte of `count` bytes."""
    return nats / math.log(2) / count if count else None


def evaluate_loss(
    model: "GPT",
    dataset: Tokens,
    *,
    context_length: int,
    batch_rows: int,
    max_batches: int | None = None,
    byte_lengths: np.ndarray | None = None,
    device: torch.device | str | None = None,
    autocast: AbstractContextManager[object] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> LossResult | None:
    """The loss of `model` over `dataset`, in windows of `context_length`, `batch_rows` windows at a time.

    max_batches: measure only that many batches, of windows spread evenly over the dataset (always the same ones).
    byte_lengths: (vocabulary,) UTF-8 bytes of each id, from the tokenizer; without it no bits per byte.
    device: where the batches go; default where the model is. autocast: entered once around the whole measurement.
    should_stop: asked before every batch; if it says yes the result is None, since a part of the sum means nothing.

    The result does not depend on `batch_rows` beyond fp32 rounding within a batch; batches are summed in float64.
    Leaves the model's mode and the global random state alone. Raises RequestError if there is nothing to predict.
    """
    if len(dataset) < 2:
        raise RequestError(f"a loss needs at least 2 tokens, one to predict the other, and the data has {len(dataset)}")
    device = next(model.parameters()).device if device is None else device
    starts = window_starts(len(dataset), context_length, None if max_batches is None else max_batches * batch_rows)
    nats, count, size = 0.0, 0, 0
    with evaluating(model), autocast or nullcontext():
        for first in range(0, len(starts), batch_rows):
            if should_stop():
                return None
            inputs, targets = _batch(dataset, starts[first : first + batch_rows], context_length)
            nats += float(model(torch.from_numpy(inputs).to(device), targets=torch.from_numpy(targets).to(device)))
            valid = targets[targets != IGNORED]
            count += len(valid)
            size += 0 if byte_lengths is None else int(byte_lengths[valid].sum())
    return LossResult(nats / count, count, None if byte_lengths is None else size)


def window_starts(n_tokens: int, context_length: int, limit: int | None = None) -> list[int]:
    """First inputs of the windows that cover `n_tokens`; with `limit`, that many of them spread evenly."""
    windows = math.ceil((n_tokens - 1) / context_length)
    if limit is None or limit >= windows:
        return [k * context_length for k in range(windows)]
    return [k * windows // limit * context_length for k in range(limit)]


def _batch(dataset: Tokens, starts: Sequence[int], context_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets (B, T), int64, of the windows at `starts`; a short window is padded with ignored targets."""
    windows = [dataset.tokens(start, min(start + context_length + 1, len(dataset))) for start in starts]
    width = max(len(window) for window in windows) - 1
    inputs = np.zeros((len(windows), width), np.int64)
    targets = np.full((len(windows), width), IGNORED, np.int64)
    for row, window in enumerate(windows):
        inputs[row, : len(window) - 1] = window[:-1]
        targets[row, : len(window) - 1] = window[1:]
    return inputs, targets
