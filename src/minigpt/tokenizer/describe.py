"""What there is to say about a tokenizer, and how well it does on a text."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigpt.config import RequestError
from minigpt.tokenizer.char import CharTokenizer
from minigpt.tokenizer.huggingface import HuggingFaceTokenizer
from minigpt.tokenizer.llama2c import Llama2cTokenizer
from minigpt.tokenizer.model_proto import BPE, UNIGRAM
from minigpt.tokenizer.patterns import CL100K, REGEXES, regex_of
from minigpt.tokenizer.pieces import PieceTokenizer
from minigpt.tokenizer.protocol import Tokenizer

BATCH_CHARACTERS = 1 << 20


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """Kind, vocabulary, special tokens and the rest, ready for JSON."""
    return {
        "kind": _kind(tokenizer),
        "vocab_size": tokenizer.vocab_size,
        "pattern": _pattern(tokenizer),
        "eot_id": tokenizer.eot_id,
        "special_tokens": tokenizer.special_tokens,
        "exact_bytes": tokenizer.exact_bytes,
        "fingerprint": tokenizer.fingerprint,
    }


def _kind(tokenizer: Tokenizer) -> str:
    if isinstance(tokenizer, CharTokenizer):
        return "char"
    if isinstance(tokenizer, Llama2cTokenizer):
        return "llama2.c"
    if isinstance(tokenizer, PieceTokenizer):
        return {UNIGRAM: "unigram", BPE: "sentencepiece-bpe"}.get(tokenizer.model.algorithm, "sentencepiece")
    return "byte-level" if tokenizer.exact_bytes else "other"


def _pattern(tokenizer: Tokenizer) -> str | None:
    """Name of the rule that splits text first, if it is one of those known here."""
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return None
    regex = regex_of(json.loads(tokenizer._json)["pre_tokenizer"])
    return next((name for name, known in {**REGEXES, "cl100k": CL100K}.items() if known == regex), None)


@dataclass
class Compression:
    """How many tokens a tokenizer makes of a text."""

    tokenizer: Tokenizer
    bytes: int = 0
    tokens: int = 0
    exact: bool = True
    """Whether decoding gives the very text again."""
    failure: str | None = None
    """Why the text cannot be encoded; the counts are then of what came before."""
    counts: NDArray[np.int64] = field(init=False)
    """(vocab_size,) how often each id came."""

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.tokenizer.vocab_size, dtype=np.int64)

    def add(self, texts: Sequence[str]) -> None:
        """Count these texts too."""
        if self.failure is not None:
            return
        try:
            encoded = self.tokenizer.encode_arrays(texts)
        except RequestError as error:
            self.failure = str(error)
            return
        for text, ids in zip(texts, encoded, strict=True):
            self.bytes += len(text.encode())
            self.tokens += len(ids)
            self.counts += np.bincount(ids, minlength=len(self.counts))
            self.exact = self.exact and self.tokenizer.decode(ids.tolist()) == text

    def facts(self) -> dict[str, Any]:
        """Ready for JSON; only the failure if there was one."""
        if self.failure is not None:
            return {"failure": self.failure}
        return {
            "bytes": self.bytes,
            "tokens": self.tokens,
            "bytes_per_token": self.bytes / self.tokens if self.tokens else None,
            "ids_used": int(np.count_nonzero(self.counts)),
            "exact": self.exact,
        }


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts, some of them at a time, so that a long source need not be in memory."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
