"""What was written is read back and must give the source's logits, or it is not published."""

from collections.abc import Callable

import torch
from torch import Tensor

from minigpt.config import ModelConfig, WorkError
from minigpt.model import GPT

Logits = Callable[[Tensor], Tensor]
"""(B, T) int64 token ids to (B, T, vocab_size) logits."""

TOLERANCE = 1e-4
"""Largest difference of two logits that are computed from the same fp32 weights in another order, relative to the
largest logit (or to 1, if they are all smaller)."""

ROWS = 2
TOKENS = 64  # a row, unless a window is longer
MOST_TOKENS = 512


def verify(exported: Logits, model: GPT, *, tolerance: float = TOLERANCE, what: str = "the export") -> float:
    """Compare logits on fixed random ids; gives the largest difference, relative as the tolerance is.

    Args:
        exported: the network that was read back, or another program that runs it.
        model: what it must equal.
        tolerance: largest difference allowed, relative to the largest logit or to 1.
        what: the subject of the sentence in an error.

    Raises:
        WorkError: they differ by more, or are not finite.
    """
    ids = verification_ids(model.config)
    with torch.no_grad():
        expected = model(ids).float()
        got = exported(ids).float().to(expected.device)
    if not expected.isfinite().all():
        raise WorkError("the model gives logits that are not finite numbers, so no export of it can be verified")
    if got.shape != expected.shape:
        raise WorkError(f"{what} is wrong: its logits have the shape {tuple(got.shape)}, not {tuple(expected.shape)}")
    difference = float((got - expected).abs().max() / expected.abs().max().clamp(min=1.0))
    if not difference <= tolerance:  # also if it is NaN
        raise WorkError(
            f"{what} is wrong: its logits differ from the model's by {difference:.1e} of the largest one "
            f"({tolerance:.0e} is allowed), so nothing was written"
        )
    return difference


def verification_ids(config: ModelConfig) -> Tensor:
    """(ROWS, T) int64: the same random ids every time, long enough to reach beyond a short window where there is one.

    Raises ValueError if the config has no vocabulary size.
    """
    if config.vocab_size is None:
        raise ValueError("model.vocab_size must be known")
    windows = [window for layer in range(config.n_layer) if (window := config.window(layer)) is not None]
    wanted = max([TOKENS, *(window + TOKENS // 2 for window in windows)])
    length = min(wanted, MOST_TOKENS, config.context_length)
    return torch.randint(config.vocab_size, (ROWS, length), generator=torch.Generator().manual_seed(0))
