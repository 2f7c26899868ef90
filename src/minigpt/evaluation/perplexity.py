"""How surprised a model is by a text, token by token.

A window of `context_length` tokens slides over the text by `stride`; each token is scored once, in the first window
that reaches it. With the default stride (a whole window) that is the fastest; a smaller one gives every token at
least `context_length - stride` tokens of context (where the text has them), at the cost of reading each token
`context_length / stride` times. This is the "sliding window" of Hugging Face's "Perplexity of fixed-length models",
except that no token between two windows is skipped.

The first token of a text has nothing before it and is not scored, unless `from_eot` puts the tokenizer's end-of-text
token in front: that asks how likely the text is as a document of its own.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import torch

from minigpt.config import RequestError
from minigpt.evaluation.loss import bits_per_byte, exp_or_inf
from minigpt.inference import check_vocabulary, evaluating

if TYPE_CHECKING:
    from minigpt.model import GPT
    from minigpt.tokenizer import Tokenizer


class TokenLoss(NamedTuple):
    """One token of a text."""

    text: str
    """The token decoded alone; U+FFFD where it is only a part of a character."""
    nll: float | None
    """-log p of the token given those before it, in nats; None for a first token with nothing before it."""
    id: int


class TextScore(TypedDict):
    """What `minigpt eval` says of a text."""

    loss: float
    perplexity: float
    bits_per_byte: float | None
    tokens: int
    bytes: int


def per_token(
    model: "GPT",
    tokenizer: "Tokenizer",
    text: str,
    *,
    stride: int | None = None,
    context_length: int | None = None,
    from_eot: bool = False,
    batch_rows: int = 8,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[TokenLoss] | None:
    """The tokens of `text` with their losses, in order; None if `should_stop` (asked before every batch) said yes.

    stride: 1 to `context_length`; default `context_length`, which is by default the model's. batch_rows: windows
    read at a time.
    Raises RequestError for an impossible stride, `from_eot` with a tokenizer that has no end-of-text token, or a
    tokenizer with more
    ids than the model.
    """
    check_vocabulary(model, tokenizer)
    ids = tokenizer.encode(text)
    if from_eot and tokenizer.eot_id is None:
        raise RequestError("from_eot: this tokenizer has no end-of-text token to begin with; leave from_eot out")
    start = [tokenizer.eot_id] if from_eot and tokenizer.eot_id is not None else []
    losses = sequence_losses(
        model,
        start + ids,
        stride=stride,
        context_length=context_length,
        batch_rows=batch_rows,
        should_stop=should_stop,
    )
    if losses is None:
        return None
    unscored = 0 if start else min(1, len(ids))
    scored: list[float | None] = [*[None] * unscored, *losses]
    return [TokenLoss(tokenizer.decode([token]), nll, token) for token, nll in zip(ids, scored, strict=True)]


def evaluate_text(
    model: "GPT",
    tokenizer: "Tokenizer",
    text: str,
    *,
    stride: int | None = None,
    context_length: int | None = None,
    from_eot: bool = False,
    batch_rows: int = 8,
    should_stop: Callable[[], bool] = lambda: False,
) -> TextScore | None:
    """Mean loss (nats), perplexity and bits per byte over the scored tokens of `text`; arguments as for `per_token`.

    `tokens` and `bytes` count what was scored: all but the first token, or all with `from_eot`. None if told to stop.
    Raises RequestError also if the text is too short to score anything.
    """
    tokens = per_token(
        model,
        tokenizer,
        text,
        stride=stride,
        context_length=context_length,
        from_eot=from_eot,
        batch_rows=batch_rows,
        should_stop=should_stop,
    )
    return None if tokens is None else score(tokens, tokenizer)


def score(tokens: list[TokenLoss], tokenizer: "Tokenizer") -> TextScore:
    """The summary of what `per_token` gave. Raises RequestError if no token was scored."""
    losses = [token.nll for token in tokens if token.nll is not None]
    if not losses:
        raise RequestError(
            f"the text has {len(tokens)} tokens, too few to predict one from another: give a longer text"
        )
    nats = math.fsum(losses)
    byte_lengths = tokenizer.byte_lengths()
    size = sum(int(byte_lengths[token.id]) for token in tokens if token.nll is not None)
    loss = nats / len(losses)
    return TextScore(
        loss=loss,
        perplexity=exp_or_inf(loss),
        bits_per_byte=bits_per_byte(nats, size),
        tokens=len(losses),
        bytes=size,
    )


def sequence_losses(
    model: "GPT",
    ids: list[int],
    *,
    stride: int | None = None,
    context_length: int | None = None,
    batch_rows: int = 8,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[float] | None:
    """-log p in nats of `ids[1:]`, each given those before it in its window; None if told to stop.

    Raises RequestError for a stride that is not 1 to `context_length`, or a `context_length` beyond the model's.
    """
    length = model.config.context_length if context_length is None else context_length
    if not 1 <= length <= model.config.context_length:
        raise RequestError(
            f"context_length={length} is not possible: this model takes 1 to {model.config.context_length}"
        )
    step = length if stride is None else stride
    if not 1 <= step <= length:
        raise RequestError(f"stride={step} is not possible: it must be 1 to the context length, {length}")
    device = next(model.parameters()).device
    losses: list[float] = []
    last = max(0, math.ceil((len(ids) - 1 - length) / step))  # number of the first window that reaches the end
    starts = [k * step for k in range(last + 1)] if len(ids) > 1 else []
    with evaluating(model):
        for first in range(0, len(starts), batch_rows):
            if should_stop():
                return None
            windows = [ids[start : start + length + 1] for start in starts[first : first + batch_rows]]
            width = max(map(len, windows)) - 1
            inputs = torch.tensor([w[:-1] + [0] * (width + 1 - len(w)) for w in windows], device=device)  # (B, T)
            targets = torch.tensor([w[1:] + [0] * (width + 1 - len(w)) for w in windows], device=device)
            nlls = model.token_losses(inputs, targets).tolist()
            for start, window, row in zip(starts[first : first + batch_rows], windows, nlls, strict=True):
                losses += row[len(losses) - start : len(window) - 1]  # the first ones were scored in the window before
    return losses
