"""Byte-level BPE trained here (Sennrich et al. 2016, arXiv:1508.07909; on bytes as in GPT-2).

Every byte is in the vocabulary, so every text can be encoded and none changes on the way back. Ids: the 256 bytes, the
merges in the order they were learned, the special tokens last (as in GPT-2), so that adding one later shifts none.

Two merges with the same count: the library takes the one whose (left id, right id) is smaller.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from minigpt.config import RequestError
from minigpt.tokenizer.huggingface import HuggingFaceTokenizer, add_special_tokens, refuse_surrogates
from minigpt.tokenizer.patterns import WHOLE_WORDS_FIRST, pre_tokenizer, safe_pieces

BYTES = 256


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    pattern: str = "gpt2",
    special_tokens: Sequence[str] = ("<|endoftext|>",),
    on_progress: Callable[[int], None] | None = None,
) -> HuggingFaceTokenizer:
    """Train on the texts; the same texts in the same order give the same tokenizer.json.

    vocab_size counts everything: 256 bytes, merges, special tokens. A text with too few different words for it gives
    fewer merges: the returned tokenizer's own `vocab_size` says how many ids there are. The first special token ends
    documents. A special token inside the texts separates them and is not learned from.
    on_progress is called with the number of characters read so far.

    RequestError: vocab_size below 256 + special tokens, unknown pattern, no text, invalid Unicode, bad special tokens.
    """
    special_tokens = tuple(special_tokens)
    minimum = BYTES + len(special_tokens)
    if vocab_size < minimum:
        raise RequestError(
            f"tokenizer.vocab_size={vocab_size} is too small: a byte-level BPE needs {BYTES} bytes + "
            f"{len(special_tokens)} special tokens = {minimum} at least"
        )
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=pattern in WHOLE_WORDS_FIRST))
    backend.pre_tokenizer = pre_tokenizer(pattern)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces = TrainingPieces(texts, special_tokens, on_progress)
    backend.train_from_iterator(pieces, trainer=trainer)
    if not pieces.characters:
        raise RequestError("there is no text to train a tokenizer on: the training text is empty")
    add_special_tokens(backend, special_tokens)
    return HuggingFaceTokenizer(backend, settings={"eos_token": special_tokens[0]} if special_tokens else None)


class TrainingPieces:
    """The texts, split at special tokens and cut small, so that the library holds little more than the word counts."""

    def __init__(
        self, texts: Iterable[str], special_tokens: Sequence[str], on_progress: Callable[[int], None] | None
    ) -> None:
        self.texts = texts
        self.on_progress = on_progress
        self.characters = 0
        longest_first = sorted(filter(None, special_tokens), key=len, reverse=True)
        self.special = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            refuse_surrogates(text)
            for part in self.special.split(text) if self.special else [text]:
                for piece in safe_pieces(part):
                    yield piece
                    self.characters += len(piece)
                    if self.on_progress is not None:
                        self.on_progress(self.characters)
