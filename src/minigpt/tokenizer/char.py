"""The character-level tokenizer: the sorted set of a text's characters, one id each (nanoGPT's shakespeare_char).

It is a WordLevel model of one-character words for the Hugging Face library, so its tokenizer.json works anywhere.
Encoding here is one look-up in an array instead, and names the character that is not in the vocabulary.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Regex, decoders, models, pre_tokenizers

from minigpt.config import RequestError
from minigpt.tokenizer.huggingface import HuggingFaceTokenizer, add_special_tokens, refuse_surrogates

_ANY_CHARACTER = r"[\s\S]"


class CharTokenizer(HuggingFaceTokenizer):
    """One id a character. `from_texts` makes one; the constructor takes a backend that `is_char` recognises."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        settings: Mapping[str, Any] | None = None,
        native_files: Mapping[str, bytes] | None = None,
    ) -> None:
        super().__init__(backend, settings=settings, native_files=native_files)
        words = backend.get_vocab(with_added_tokens=False)
        self._ids: NDArray[np.int32] = np.full(max(map(ord, words)) + 2, -1, dtype=np.int32)  # the last: all beyond
        for character, i in words.items():
            self._ids[ord(character)] = i

    @classmethod
    def from_texts(cls, texts: Iterable[str], special_tokens: Sequence[str] = ()) -> "CharTokenizer":
        """Vocabulary: the texts' characters in code point order, then the special tokens. RequestError: no text."""
        characters: set[str] = set()
        for text in texts:
            characters.update(text)
        if not characters:
            raise RequestError("there is no text to make a character vocabulary from: the training text is empty")
        refuse_surrogates("".join(sorted(characters)))
        words = {character: i for i, character in enumerate(sorted(characters))}
        # The unknown word is not in the vocabulary on purpose: the library then raises instead of dropping characters.
        backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(_ANY_CHARACTER), behavior="isolated")
        backend.decoder = decoders.Fuse()
        add_special_tokens(backend, special_tokens)
        return cls(backend)

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        if not (allow_special and self.special_tokens):
            return self._look_up(text).tolist()
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        ids: list[int] = []
        done = 0
        for part in re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text):
            ids += [self.special_tokens[part]] if part in self.special_tokens else self._look_up(part, done).tolist()
            done += len(part)
        return ids

    def encode_batch(self, texts: Iterable[str], *, allow_special: bool = False) -> list[list[int]]:
        return [self.encode(text, allow_special=allow_special) for text in texts]

    def encode_arrays(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        return [self._look_up(text).astype(np.uint32) for text in texts]

    def _look_up(self, text: str, offset: int = 0) -> NDArray[np.int32]:
        """(characters,) ids; `offset` is where the text begins in the one that an error speaks of."""
        points = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
        ids = self._ids[np.minimum(points, len(self._ids) - 1)]
        if len(ids) and ids.min() < 0:
            refuse_surrogates(text)
            position = int(np.argmax(ids < 0))
            raise RequestError(
                f"character {text[position]!r} (U+{ord(text[position]):04X}) at position {offset + position} is not in "
                f"the vocabulary, the {(self._ids >= 0).sum()} characters of this character tokenizer's training text"
            )
        return ids


def is_char(backend: tokenizers.Tokenizer) -> bool:
    """Whether a tokenizer is one that `CharTokenizer.from_texts` made (special tokens may have been added since)."""
    description: Any = json.loads(backend.to_str())
    match description:
        case {
            "normalizer": None,
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
            "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": {**words}},
            "added_tokens": [*added],
        }:
            one_each = all(len(str(word)) == 1 for word in words)
            return regex == _ANY_CHARACTER and bool(words) and one_each and all(token["special"] for token in added)
    return False
