"""Stand-ins: a network whose logits are an exact function of the tokens it sees, so that no test is about rounding."""

import hashlib
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from minigpt.config import ModelConfig


class FakeCache:
    """Remembers the tokens of each row and insists on correct use."""

    def __init__(self, batch: int, length: int) -> None:
        self.rows: list[list[int]] = [[] for _ in range(batch)]
        self.length = length

    def reset(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.rows[row] = []

    def select(self, rows: Sequence[int]) -> None:
        self.rows = [list(self.rows[row]) for row in rows]


class FakeModel(nn.Module):
    """Logits after the tokens `seen` are `function(seen)` (V,); `reads` counts the columns that were computed."""

    def __init__(self, vocab_size: int, context_length: int, function: Callable[[list[int]], Tensor]) -> None:
        super().__init__()
        self.config = ModelConfig(n_layer=1, n_head=1, n_embd=32, context_length=context_length, vocab_size=vocab_size)
        self.function, self.reads = function, 0
        self.weight = nn.Parameter(torch.zeros(1))

    def make_cache(self, batch: int, length: int) -> FakeCache:
        assert length <= self.config.context_length
        return FakeCache(batch, length)

    def hidden_states(self, ids: Tensor, *, cache: FakeCache, positions: Tensor | None) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        if positions is None:
            positions = torch.tensor([[len(row) + t for t in range(ids.shape[1])] for row in cache.rows])
        assert ids.shape == positions.shape and len(ids) == len(cache.rows)
        self.reads += ids.shape[1]
        out = torch.full((*ids.shape, self.config.vocab_size), float("nan"))
        for b, row in enumerate(cache.rows):
            for t in range(ids.shape[1]):
                if positions[b, t] >= 0:
                    assert positions[b, t] == len(row) < cache.length
                    row.append(int(ids[b, t]))
                    out[b, t] = self.function(list(row))
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


def hashed(vocab_size: int) -> Callable[[list[int]], Tensor]:
    """Random logits that depend on every token that is seen and on its place."""

    def function(seen: list[int]) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(str(seen).encode()).digest()[:7], "little")
        return torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)) * 2

    return function


def scripted(vocab_size: int, ids: Sequence[int], prompt: int) -> Callable[[list[int]], Tensor]:
    """After a prompt of `prompt` tokens, exactly these ids, one after the other."""

    def function(seen: list[int]) -> Tensor:
        logits = torch.zeros(vocab_size)
        logits[ids[min(max(len(seen) - prompt, 0), len(ids) - 1)]] = 100.0
        return logits

    return function


@pytest.fixture
def fake() -> type[FakeModel]:
    return FakeModel


@pytest.fixture
def random_model() -> Callable[..., FakeModel]:
    return lambda vocab_size=50, context_length=16: FakeModel(vocab_size, context_length, hashed(vocab_size))


@pytest.fixture
def script() -> Callable[..., FakeModel]:
    def make(ids: Sequence[int], prompt: int = 1, vocab_size: int = 300, context_length: int = 64) -> FakeModel:
        return FakeModel(vocab_size, context_length, scripted(vocab_size, ids, prompt))

    return make
