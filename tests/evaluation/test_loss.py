"""The measured loss against PyTorch's cross-entropy over the same windows, written out plainly."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minigpt.config import ModelConfig, RequestError
from minigpt.evaluation import LossResult, evaluate_loss
from minigpt.model import GPT

VOCAB = 40


class Ids:
    """A dataset in memory, uint16 like the real one."""

    def __init__(self, n: int) -> None:
        self.ids = np.random.default_rng(n).integers(0, VOCAB, n).astype(np.uint16)
        self.read: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self.ids)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start < stop <= len(self.ids)
        self.read.append((start, stop))
        return self.ids[start:stop]


@pytest.fixture(scope="module")
def model() -> GPT:
    config = ModelConfig(
        n_layer=1, n_head=2, n_embd=32, context_length=8, vocab_size=VOCAB, vocab_multiple=64, dropout=0.5, init_std=0.3
    )
    return GPT(config, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def plain(model: GPT, ids: np.ndarray, length: int) -> list[float]:
    """Loss of every token but the first, a window at a time, in float64."""
    was = model.training
    model.eval()
    tokens, losses = torch.from_numpy(ids.astype(np.int64)), []
    for start in range(0, len(ids) - 1, length):
        window = tokens[start : start + length + 1]
        losses += F.cross_entropy(model(window[None, :-1])[0].double(), window[1:], reduction="none").tolist()
    model.train(was)
    return losses


@pytest.mark.parametrize("n", [2, 3, 8, 9, 10, 16, 17, 18, 50, 97])
@pytest.mark.parametrize("batch_rows", [1, 3, 100])
def test_equals_the_plain_computation(n: int, batch_rows: int, model: GPT) -> None:
    data = Ids(n)
    lengths = np.arange(VOCAB, dtype=np.int64)
    found = evaluate_loss(model, data, context_length=8, batch_rows=batch_rows, byte_lengths=lengths)
    losses = plain(model, data.ids, 8)
    assert found is not None and found.tokens == len(losses) == n - 1
    assert found.bytes == int(data.ids[1:].astype(int).sum())
    assert found.loss == pytest.approx(math.fsum(losses) / (n - 1), rel=1e-5)  # fp32 losses, a few roundings
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.bpb == pytest.approx(math.fsum(losses) / math.log(2) / found.bytes, rel=1e-5)


def test_each_token_is_a_target_once(model: GPT) -> None:
    data = Ids(43)
    evaluate_loss(model, data, context_length=8, batch_rows=2)
    targets = [t for start, stop in data.read for t in range(start + 1, stop)]
    assert targets == list(range(1, 43))


def test_a_shorter_context_than_the_models(model: GPT) -> None:
    data = Ids(30)
    found = evaluate_loss(model, data, context_length=5, batch_rows=2)
    assert found is not None and found.loss == pytest.approx(math.fsum(plain(model, data.ids, 5)) / 29, rel=1e-5)
    assert found.bytes is None and found.bpb is None


def test_max_batches_spreads_windows_evenly_and_always_the_same(model: GPT) -> None:
    data = Ids(8 * 100 + 1)
    found = evaluate_loss(model, data, context_length=8, batch_rows=2, max_batches=5)
    assert [start for start, _ in data.read] == [80 * k for k in range(10)]
    losses = plain(model, data.ids, 8)
    expected = math.fsum(loss for k in range(10) for loss in losses[80 * k : 80 * k + 8]) / 80
    assert found is not None and found.tokens == 80 and found.loss == pytest.approx(expected, rel=1e-5)
    assert evaluate_loss(model, data, context_length=8, batch_rows=2, max_batches=5) == found
    whole = evaluate_loss(model, data, context_length=8, batch_rows=2)
    assert evaluate_loss(model, data, context_length=8, batch_rows=2, max_batches=50) == whole
    for windows, limit in ((7, 6), (10, 3), (1000, 999)):
        some = Ids(8 * windows + 1)
        evaluate_loss(model, some, context_length=8, batch_rows=1, max_batches=limit)
        assert len(set(some.read)) == limit


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_changed(training: bool, model: GPT) -> None:
    """With dropout: the mode is switched and restored, also after an error, and no random number is drawn."""
    model.train(training)
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    first = evaluate_loss(model, Ids(30), context_length=8, batch_rows=2)
    assert first == evaluate_loss(model, Ids(30), context_length=8, batch_rows=2)
    with pytest.raises(ZeroDivisionError):
        evaluate_loss(model, Ids(30), context_length=8, batch_rows=2, should_stop=lambda: 1 / 0 > 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


def test_stopping_gives_none(model: GPT) -> None:
    answers = iter([False, True])
    data = Ids(50)
    assert evaluate_loss(model, data, context_length=8, batch_rows=2, should_stop=lambda: next(answers)) is None
    assert len(data.read) == 2


def test_autocast_is_entered_once(model: GPT) -> None:
    exact = evaluate_loss(model, Ids(30), context_length=8, batch_rows=2)
    rough = evaluate_loss(
        model, Ids(30), context_length=8, batch_rows=2, autocast=torch.autocast("cpu", dtype=torch.bfloat16)
    )
    assert exact is not None and rough is not None and exact != rough
    assert rough.loss == pytest.approx(exact.loss, rel=0.02)  # bf16 has 8 bits
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("n", [0, 1])
def test_too_little_data(n: int, model: GPT) -> None:
    with pytest.raises(RequestError, match=f"at least 2 tokens, one to predict the other, and the data has {n}"):
        evaluate_loss(model, Ids(n), context_length=8, batch_rows=2)


def test_results_at_the_edges() -> None:
    assert LossResult(1000.0, 1, None).perplexity == math.inf
    assert LossResult(1.0, 1, 0).bpb is None
    assert math.isnan(LossResult(math.nan, 1, 1).perplexity)
    assert LossResult(math.log(2), 30, 10).bpb == pytest.approx(3.0)  # 30 tokens of one bit each over 10 bytes
