"""SentencePiece models trained here: unigram (Kudo 2018, arXiv:1804.10959) or BPE, by the `sentencepiece` library.

Chosen so that every text can be encoded and comes back as it was: no normalization, no space put before a text, bytes
for characters that are no piece (as in Llama 2). Only the letter ▁ (U+2581), SentencePiece's own space, becomes one.

The library is given the different words of the text with their counts (its "tsv" input), which is what both algorithms
look at in the end: so the memory is bounded, whatever the length of the text. (Only unigram's first guess
looks at the text itself; of a short text, some 300 KB, the model learned from words makes 1 to 2 % more tokens.) Pieces
reach over no space and no line end, which is a piece of its own (a byte).
"""

import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from minigpt.config import RequestError
from minigpt.tokenizer.bpe import BYTES, TrainingPieces
from minigpt.tokenizer.model_proto import SPACE
from minigpt.tokenizer.sentencepiece import SentencePieceTokenizer, library_reason, sentencepiece_library

UNKNOWN = "<unk>"
WORD_CHARACTERS = 256
"""Longer words (text without spaces) are counted in parts of this size."""
MOST_WORDS = 1_000_000
"""Different words that are counted at any time: unigram takes about a kilobyte of memory for each."""
THREADS = 4
"""A constant: the sums of the unigram algorithm depend in their last bits on how they are divided among threads."""

# Not learned: line ends and tabs (sentencepiece's own separators), NUL, and U+2585, its mark for unknown characters.
_WORD = re.compile(rf" ?[^ \t\n\r\v\f\0\u2585]{{1,{WORD_CHARACTERS}}}| ")
_TOO_SMALL = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")
_TOO_LARGE = re.compile(r"too high \(\d+\)\. Please set it to a value <= (\d+)")


def train_sentencepiece(
    texts: Iterable[str],
    vocab_size: int,
    kind: Literal["unigram", "bpe"] = "unigram",
    special_tokens: Sequence[str] = ("<|endoftext|>",),
    on_progress: Callable[[int], None] | None = None,
) -> SentencePieceTokenizer:
    """Train on the texts; the same texts in the same order give the same model file.

    vocab_size counts everything: <unk> (id 0, which no text gives), the special tokens (from id 1), 256 bytes, the
    learned pieces. The first special token ends documents. They are control symbols: their names in a text are text,
    and inside the training texts they separate and are not learned from.
    on_progress is called with the number of characters read so far.

    RequestError: vocab_size too small or too large for the text, no text, invalid Unicode, bad special tokens, or the
    package `sentencepiece` is missing.
    """
    library = sentencepiece_library()
    special_tokens = tuple(special_tokens)
    _check_special_tokens(special_tokens)
    words = _count_words(TrainingPieces(texts, special_tokens, on_progress))
    if not words:
        raise RequestError("there is no text to train a tokenizer on: the training text is empty")
    written = io.BytesIO()
    try:
        library.SentencePieceTrainer.train(
            sentence_iterator=(f"{word}\t{count}" for word, count in words.items()),
            input_format="tsv",
            model_writer=written,
            model_type=kind,
            vocab_size=vocab_size,
            max_sentence_length=4 * (WORD_CHARACTERS + 1),  # bytes
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            unk_piece=UNKNOWN,
            bos_id=-1,
            eos_id=1 if special_tokens else -1,
            eos_piece=special_tokens[0] if special_tokens else "</s>",
            control_symbols=list(special_tokens[1:]),
            num_threads=THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _in_our_words(error, vocab_size, kind, len(special_tokens)) from error
    return SentencePieceTokenizer(written.getvalue())


def _count_words(texts: Iterable[str]) -> dict[str, int]:
    """The different words and how often each comes; of very many the rarest are let go, as word2vec does."""
    words: Counter[str] = Counter()
    rare = 1
    for text in texts:
        words.update(_WORD.findall(text))
        if len(words) > MOST_WORDS:
            words = Counter({word: count for word, count in words.items() if count > rare})
            rare += 1
    return words


def _check_special_tokens(names: Sequence[str]) -> None:
    for position, name in enumerate(names):
        if not name or name in names[:position]:
            raise RequestError(f"special token {name!r} is {'repeated' if name else 'empty'}: give each its own name")
        if name in (UNKNOWN, SPACE) or re.fullmatch("<0x[0-9A-F]{2}>", name) or not name.isprintable():
            raise RequestError(f"special token {name!r} cannot be one of a SentencePiece model: choose another name")


def _in_our_words(error: RuntimeError, vocab_size: int, kind: str, n_special: int) -> RequestError:
    if found := _TOO_SMALL.search(str(error)):
        return RequestError(
            f"tokenizer.vocab_size={vocab_size} is too small: this text needs {found[1]} at least ({BYTES} bytes, "
            f"{1 + n_special} special tokens, its characters)"
        )
    if found := _TOO_LARGE.search(str(error)):
        return RequestError(
            f"tokenizer.vocab_size={vocab_size} is too large: the text has only enough different words for {found[1]}"
        )
    return RequestError(f"sentencepiece cannot train the {kind} tokenizer: {library_reason(error)}")
