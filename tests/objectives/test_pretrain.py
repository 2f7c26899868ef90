"""What a row is: every token of the text once an epoch, every validation token but the first once, and its bytes."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigpt.data import TokenDataset, WindowOrder
from minigpt.objectives import IGNORED, PretrainObjective, stack, valid_targets


def positions(count):
    """A dataset whose tokens are their own positions, so that a row shows where it comes from."""
    return TokenDataset([np.arange(count, dtype=np.uint16)], 1 << 16, "")


class Bytes:
    """Of a tokenizer, how many bytes each id stands for."""

    def __init__(self, lengths):
        self.lengths = np.array(lengths)

    def byte_lengths(self):
        return self.lengths


class Model:
    """Gives every target the loss of one nat a token and its number besides, as a network's call would."""

    def __call__(self, ids, targets):
        valid = targets != IGNORED
        return (valid * (1.0 + ids)).sum()


def objective(train=100, validation=None, length=8, **more):
    tokens = None if validation is None else positions(validation)
    return PretrainObjective(positions(train), tokens, context_length=length, seed=3, **more)


@given(count=st.integers(9, 300), length=st.integers(1, 8))
def test_an_epochs_rows_cover_the_text_but_for_its_ragged_end(count, length):
    """Each target once; what does not fill a window is left out, less than two windows in all."""
    made = objective(count, length=length)
    targets = [int(t) for row in range(made.rows_per_epoch) for t in made.row(row)["targets"]]
    assert len(set(targets)) == len(targets) == made.rows_per_epoch * length
    assert count - len(targets) < 2 * length + 1 or made.rows_per_epoch == 1


def test_a_row_predicts_each_next_token():
    made = objective()
    for index in (0, 5, 11, 12, 1000):
        row = made.row(index)
        assert row["ids"].shape == row["targets"].shape == (8,)
        assert row["ids"].dtype == row["targets"].dtype == np.int64
        assert (row["targets"] == row["ids"] + 1).all() and (np.diff(row["ids"]) == 1).all()
        assert row["ids"][0] == WindowOrder(100, 8, 3).window(index)[1]


@given(count=st.integers(2, 200), length=st.integers(1, 20))
def test_all_validation_rows_predict_each_token_but_the_first_once(count, length):
    made = objective(validation=count, length=length)
    rows = [made.validation_row(index) for index in range(made.validation_rows)]
    assert Counter(int(t) for row in rows for t in row["targets"]) == Counter(range(1, count))
    assert all((row["targets"] == row["ids"] + 1).all() for row in rows)


@given(count=st.integers(2, 400), length=st.integers(1, 20), limit=st.integers(1, 500))
def test_a_limit_takes_whole_rows_spread_over_the_text(count, length, limit):
    made = objective(validation=count, length=length, validation_tokens=limit)
    rows = [made.validation_row(index) for index in range(made.validation_rows)]
    starts = [int(row["ids"][0]) for row in rows]
    assert all(start % length == 0 for start in starts) and len(set(starts)) == len(starts)
    windows = math.ceil((count - 1) / length)
    assert len(rows) == min(windows, math.ceil(limit / length))
    gaps = np.diff([start // length for start in starts])
    assert len(gaps) == 0 or max(gaps) - min(gaps) <= 1  # spread evenly


def test_without_validation_there_are_no_rows():
    assert objective().validation_rows == 0


def test_bits_per_byte_by_hand():
    """Tokens 0 to 5 stand for 1, 1, 2, 3, 0 and 4 bytes: targets 1 to 5 for ten."""
    made = objective(validation=6, length=4, tokenizer=Bytes([1, 1, 2, 3, 0, 4]))
    nats, count, size = 0.0, 0, 0.0
    for index in range(made.validation_rows):
        loss, valid, extra = made.validation_step(Model(), stack([made.validation_row(index)]))
        nats, count, size = nats + float(loss), count + valid, size + extra["bytes"]
    assert (count, size) == (5, 10) and made.validation_rows == 2
    assert nats == 5 + (0 + 1 + 2 + 3 + 4)  # the stand-in's loss: 1 + the input's id


def test_rows_of_different_lengths_are_padded_and_the_padding_does_not_count():
    made = objective(validation=6, length=4, tokenizer=Bytes([1] * 6))
    batch = stack([made.validation_row(0), made.validation_row(1)])
    assert batch["ids"].tolist() == [[0, 1, 2, 3], [4, 0, 0, 0]]
    assert batch["targets"].tolist() == [[1, 2, 3, 4], [5, IGNORED, IGNORED, IGNORED]]
    assert valid_targets(batch) == 5
    loss, valid, extra = made.validation_step(Model(), batch)
    assert (float(loss), valid, extra) == (15.0, 5, {"bytes": 5.0})


def test_the_training_loss_is_a_sum():
    made = objective()
    rows = [made.row(0), made.row(1)]
    total, valid, _ = made.training_step(Model(), stack(rows))
    alone = [float(made.training_step(Model(), stack([row]))[0]) for row in rows]
    assert float(total) == sum(alone) and valid == 16


def test_stack_keeps_every_array_of_a_row():
    rows = [{"ids": np.arange(2), "targets": np.arange(2), "weight": np.ones(2, dtype=np.float32)},
            {"ids": np.arange(3), "targets": np.arange(3), "weight": np.ones(3, dtype=np.float32)}]  # fmt: skip
    batch = stack(rows)
    assert batch["weight"].dtype == torch.float32 and batch["weight"].tolist() == [[1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize("count", [0, 1, 8])
def test_a_text_shorter_than_a_window_is_refused(count):
    from minigpt.config import RequestError

    with pytest.raises(RequestError):
        objective(count)
