"""What preparation gives to training: the tokens of each source, and what to validate on."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minigpt.config import RequestError
from minigpt.data.dataset import TokenDataset, joined

if TYPE_CHECKING:
    from minigpt.data.streaming.stream import TrainingStream


@dataclass(frozen=True)
class PreparedSource:
    """One source of a mixture, or all sources of a concatenation.

    `val` is its own end, kept for validation (None: nothing is kept). `weight` is its share of the training rows
    against the weights of the other sources, 1.0 if it is alone.
    """

    name: str
    train: TokenDataset
    val: TokenDataset | None
    weight: float


@dataclass(frozen=True)
class PreparedData:
    """The tokens to train and to validate on. `fingerprint` changes if and only if one of the two does.

    `sources` has one item for a concatenation, one for each source of a mixture, none when streaming. `validation` has
    (name, tokens) of each validation set. `stream` is where the training tokens come from when streaming.
    """

    sources: tuple[PreparedSource, ...]
    validation: tuple[tuple[str, TokenDataset], ...]
    fingerprint: str
    stream: "TrainingStream | None" = None

    @property
    def train(self) -> TokenDataset:
        """The training tokens of all sources, one after the other. RequestError when streaming: there are none."""
        if not self.sources:
            raise RequestError(
                "data.streaming=true tokenizes while training, so there are no prepared tokens to look at: name "
                "the text itself instead (minigpt eval: --data)"
            )
        return _whole([source.train for source in self.sources], "the training text")

    @property
    def val(self) -> TokenDataset | None:
        """The tokens of all validation sets, one after the other; None if there is none."""
        sets = [tokens for _, tokens in self.validation]
        return _whole(sets, "the validation text") if sets else None

    def require_context(self, context_length: int) -> None:
        """RequestError unless every training source and validation set holds at least one window."""
        for source in self.sources:
            source.train.require_context(context_length)
        for _, tokens in self.validation:
            tokens.require_context(context_length)
        if self.stream is not None:
            self.stream.require_context(context_length)


def fingerprint_of(sources: tuple[PreparedSource, ...], validation: tuple[tuple[str, TokenDataset], ...]) -> str:
    """SHA-256 (hexadecimal) over what is trained and validated on; names and weights are no part of it."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(f"train {source.train.fingerprint}\n".encode())
    for _, tokens in validation:
        digest.update(f"val {tokens.fingerprint}\n".encode())
    return digest.hexdigest()


def _whole(sets: list[TokenDataset], name: str) -> TokenDataset:
    return sets[0] if len(sets) == 1 else joined(sets, name)
