"""Small models for the tests of the network."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from minigpt.config import ModelConfig
from minigpt.model import GPT

SMALL: dict[str, Any] = {
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 16,
    "n_inner": 24,
    "context_length": 16,
    "vocab_size": 29,
    "init_std": 0.2,  # large enough that attention is far from uniform and a mistake shows
}


@pytest.fixture
def tiny() -> Callable[..., GPT]:
    """A small model in eval mode with every parameter random (biases and norms too), options as keywords."""

    def build(**options: Any) -> GPT:
        generator = torch.Generator().manual_seed(7)
        model = GPT(ModelConfig(**{**SMALL, **options}), generator=generator)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        return model.eval()

    return build


@pytest.fixture
def ids() -> Callable[..., torch.Tensor]:
    """Random token ids of a shape."""

    def draw(*shape: int, vocab_size: int = 29, seed: int = 0) -> torch.Tensor:
        return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))

    return draw
