"""Another context length or vocabulary for a model that exists: its config and, one by one, the tensors that change.

Context. Rotary positions have no weights: only the number in the config changes. A learned table is cut after the first
positions, or stretched: linear interpolation between its rows, the first and the last staying what they are (as vision
transformers do with theirs; Dosovitskiy et al. 2021, section 3.2). A cut model computes the same as before, a stretched
one has to be trained on.

Vocabulary. Token rows (of the embedding, an untied head and the embeddings of values) beyond the new size go; new ones
get the mean of the old ones, which keeps the distribution of the next token close to what it was (Hewitt 2021,
"Initializing New Word Embeddings for Pretrained Language Models"). Padding rows, whose logits nobody sees, are zeros.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from minigpt.config import ModelConfig, RequestError

POSITIONS = "position.weight"
TOKEN_ROWS = ("embed.weight", "head.weight", "value_embed.weight")
"""How the names of the tensors end that have one row a token."""


def resize(
    config: ModelConfig,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    context_length: int | None = None,
    vocab_size: int | None = None,
    vocab_multiple: int | None = None,
) -> tuple[ModelConfig, Iterator[tuple[str, Tensor]], list[str]]:
    """The model with other sizes; None leaves one as it is.

    config: the model as it is, its `vocab_size` known. tensors: (canonical name, tensor), passed on lazily.
    Returns the new config, the new tensors and what a person should know about them, a sentence each.
    Raises RequestError for a size below 1.
    """
    if config.vocab_size is None:
        raise ValueError("model.vocab_size is not known")
    given = {"context_length": context_length, "vocab_size": vocab_size, "vocab_multiple": vocab_multiple}
    changes = {name: size for name, size in given.items() if size is not None}
    for name, size in changes.items():
        if size < 1:
            raise RequestError(f"{name}={size} is not possible: it must be at least 1")
    new = config.model_copy(update=changes)
    return new, _resized(config, new, tensors), _notes(config, new)


def _resized(old: ModelConfig, new: ModelConfig, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        if name == POSITIONS:
            yield name, stretch_rows(tensor, new.context_length)
        elif name.endswith(TOKEN_ROWS):
            assert old.vocab_size is not None and new.vocab_size is not None
            yield name, token_rows(tensor, old.vocab_size, new.vocab_size, new.padded_vocab_size)
        else:
            yield name, tensor


def stretch_rows(table: Tensor, length: int) -> Tensor:
    """(old length, C) to (length, C): its first rows, or linear interpolation between all of them."""
    old = table.size(0)
    if length <= old:
        return table[:length].clone()
    place = torch.linspace(0, old - 1, length, dtype=torch.float64, device=table.device)  # in rows of the old table
    left = place.floor().long().clamp(max=max(old - 2, 0))
    right = (left + 1).clamp(max=old - 1)
    share = (place - left)[:, None]  # (length, 1), how far on the way from the left row to the right one
    rows = table.double()
    return torch.lerp(rows[left], rows[right], share).to(table.dtype)


def token_rows(table: Tensor, old: int, new: int, padded: int) -> Tensor:
    """(rows, C) with `old` tokens to (padded, C) with `new` ones."""
    if (old, padded) == (new, table.size(0)):
        return table
    result = table.new_zeros(padded, table.size(1))
    kept = min(old, new)
    result[:kept] = table[:kept]
    if new > old:
        result[old:new] = table[:old].double().mean(dim=0).to(table.dtype)
    return result


def _notes(old: ModelConfig, new: ModelConfig) -> list[str]:
    notes = []
    assert old.vocab_size is not None and new.vocab_size is not None
    if new.context_length > old.context_length:
        how = "its table of positions is stretched by linear interpolation" if new.position == "learned" else (
            "it has never seen such distant tokens (model.rope_scaling can help)"
        )  # fmt: skip
        notes.append(
            f"the context grows from {old.context_length:,} to {new.context_length:,} tokens: {how}, so train it on"
        )
    if new.vocab_size > old.vocab_size:
        notes.append(f"{new.vocab_size - old.vocab_size:,} new tokens begin as the mean of the {old.vocab_size:,} old")
    if new.vocab_size < old.vocab_size:
        notes.append(f"the last {old.vocab_size - new.vocab_size:,} of {old.vocab_size:,} tokens are gone")
    return notes
