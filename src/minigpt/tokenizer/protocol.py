"""What every tokenizer of this package can do. Code that takes text or ids depends on this alone."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back. Immutable after construction, so threads may share one."""

    @property
    def vocab_size(self) -> int:
        """The largest id plus one: every id is below it, though not every number below it need be an id."""

    @property
    def special_tokens(self) -> dict[str, int]:
        """Tokens that are not text (`<|endoftext|>`, chat roles, ...), with their ids."""

    @property
    def eot_id(self) -> int | None:
        """The id that ends a document, None for a tokenizer without one."""

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of all that decides the ids of plain text. Adding a special token leaves it as it is."""

    @property
    def exact_bytes(self) -> bool:
        """Whether `decode` is the concatenation of `token_bytes` read as UTF-8 (byte-level and character ones)."""

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Ids of a text, none added before or after. A special token's name in the text is ordinary text, unless
        `allow_special`. RequestError: the text has a lone surrogate, or something that the vocabulary cannot spell."""

    def encode_batch(self, texts: Iterable[str], *, allow_special: bool = False) -> list[list[int]]:
        """`encode` of each text, in parallel where the tokenizer can."""

    def encode_arrays(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The ids of `encode(text)` of each text, each as an array (number of ids,). For a lot of text: fast where the
        tokenizer can, and meant to be called from several threads at once. RequestError as for `encode`."""

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of the ids; bytes that are not UTF-8 come out as U+FFFD. Special tokens appear by name, unless
        `skip_special`. RequestError: an id outside the vocabulary."""

    def token_bytes(self, token_id: int) -> bytes | None:
        """UTF-8 bytes that the id stands for. None for a special token, for a number that is no id, and for every id of
        a tokenizer that is not `exact_bytes`."""

    def byte_lengths(self) -> NDArray[np.int64]:
        """(vocab_size,) UTF-8 bytes that each id stands for, 0 for special tokens. Summed over the ids of a text they
        give its length in bytes if `exact_bytes`; for others (SentencePiece-like, WordPiece) nearly so."""

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and the native files (if any) into an existing folder."""
