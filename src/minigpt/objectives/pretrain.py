"""Pretraining: predict each next token of the training text."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from minigpt.config import DataConfig
from minigpt.data import TokenDataset
from minigpt.data.rows.masks import IGNORED, Row
from minigpt.data.rows.training_rows import TrainingRows, ValidationRows, plain_rows
from minigpt.data.streaming.stream import StreamRows
from minigpt.objectives.base import Batch, valid_targets
from minigpt.optim import parameter_groups
from minigpt.tokenizer import Tokenizer


class Rows(Protocol):
    """Training rows: `TrainingRows`, or `StreamRows` where they are tokenized while training."""

    names: tuple[str, ...]
    rows_per_epoch: int

    def row(self, index: int) -> Row: ...
    def source(self, index: int) -> int: ...
    def epochs(self, rows: int) -> list[float]: ...


class PretrainObjective:
    """Rows of `context_length` inputs and as many targets, in the order that `seed` gives.

    train, validation: the tokens, for windows in random order. `rows` and `held_out` are the rows of training and of
    validation in place of these windows, where a config asks for others; train is None if it streams.
    tokenizer: says how many bytes each id stands for, for bits per byte (None: there are none).
    validation_tokens: measure on about so many tokens, in windows spread evenly over the validation set (None: all).
    """

    def __init__(
        self,
        train: TokenDataset | None,
        validation: TokenDataset | None,
        *,
        context_length: int,
        seed: int,
        tokenizer: Tokenizer | None = None,
        validation_tokens: int | None = None,
        rows: Rows | None = None,
        held_out: ValidationRows | None = None,
    ) -> None:
        self.train, self.validation = train, validation
        self.context_length = context_length
        self.tokenizer = tokenizer
        self.byte_lengths = None if tokenizer is None else tokenizer.byte_lengths()
        if rows is None:
            assert train is not None
            rows = plain_rows(train, context_length=context_length, seed=seed)
        if held_out is None:
            sets = [] if validation is None else [("val", validation)]
            held_out = ValidationRows(sets, DataConfig(), context_length=context_length, max_tokens=validation_tokens)
        self._rows, self._held_out = rows, held_out
        self._full = isinstance(rows, TrainingRows) and rows.full
        self.rows_per_epoch = rows.rows_per_epoch
        self.validation_rows = len(held_out)
        self.validation_sets: Sequence[tuple[str, range]] = held_out.sets
        """(name, numbers of its validation rows) of each validation set."""
        self.source_names = rows.names
        """The sources of a mixture; () where there is none."""
        self.stream = rows if isinstance(rows, StreamRows) else None
        """Where the rows come from if they cannot be made from their numbers."""

    def row(self, index: int) -> Row:
        """Inputs `ids` (T,) and `targets` (T,), int64, of row `index`; `document_ids` and `positions` as far as needed.

        Targets that take no part are IGNORED.
        """
        return self._rows.row(index)

    def row_source(self, index: int) -> int:
        """Which of `source_names` row `index` is from."""
        return self._rows.source(index)

    def epochs(self, rows: int) -> list[float]:
        """How often the first `rows` rows go through each source."""
        return self._rows.epochs(rows)

    def validation_row(self, index: int) -> Row:
        """Consecutive windows that share no target, so that all rows together predict each token but the first once.

        The last window of a set may be shorter.
        """
        return self._held_out.row(index)

    def training_step(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int, dict[str, float]]:
        """Summed cross-entropy in nats."""
        valid = batch["targets"].numel() if self._full else valid_targets(batch)  # counting waits for the device
        return _loss(model, batch), valid, {}

    def validation_step(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int, dict[str, float]]:
        """Summed cross-entropy in nats, and the bytes that the targets stand for."""
        metrics = {}
        if self.byte_lengths is not None:
            targets = batch["targets"].cpu().numpy()
            metrics["bytes"] = float(self.byte_lengths[targets[targets != IGNORED]].sum())
        return _loss(model, batch), valid_targets(batch), metrics

    def parameter_groups(self, model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
        """All parameters; weight decay on the matrices."""
        return parameter_groups(model.named_parameters(), weight_decay)


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    """Summed cross-entropy of a batch, whose documents (if it has any) do not see each other."""
    documents = {name: batch[name] for name in ("document_ids", "positions") if name in batch}
    loss: Tensor = model(batch["ids"], targets=batch["targets"], **documents)
    return loss
