"""The ids of a byte-level BPE several times faster, by `tiktoken`, where it is proven that they are the same.

`tokenizers` merges the listed pairs, the earliest in the list first. `tiktoken` has no list: it merges any two
neighbours whose bytes together are a token, the token of the lowest rank first. The two do the same on every text if
the bytes of each token, merged by the list alone, end in that token. For then let (x, y) be neighbours in some text
whose bytes together are a token t. No merge has reached across the ends of t so far, so within t all went as if t stood
alone; and t alone comes by just one state of two parts, the pair that the list has for t. So (x, y) is that pair, and
what one library may merge, the other may. `merges_stand_alone` checks this for all tokens.

The rule by which a text is split first is one of `patterns`, about classes of characters (letters, digits, white
space). Which characters are in a class is a matter of the Unicode version of each library: a text with a character that
the two class differently is left to `tokenizers`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, normalizers

from minigpt.tokenizer.byte_level import byte_alphabet
from minigpt.tokenizer.patterns import CLASSES, grouped, regex_of

BYTES = 256
_ASCII = bytes(range(128))
_UNUSED = "<|endoftext|>"  # tiktoken wants a special token; it is never looked for


class FastBPE:
    """Encodes the texts that it can, by `tiktoken`. Safe to use from several threads; the ids are those of the
    tokenizer that it was made from."""

    def __init__(self, tokens: Sequence[bytes], ids: NDArray[np.uint32], regex: str, alike: "_Alike") -> None:
        """`tokens`: the 256 bytes, then the results of the merges in their order; `ids`: (tokens,), the id of each."""
        import tiktoken

        ranks = {token: rank for rank, token in enumerate(tokens)}
        self._engine = tiktoken.Encoding(
            "minigpt",
            pat_str=grouped(regex),
            mergeable_ranks=ranks,
            special_tokens={_UNUSED: len(tokens)},
        )
        self._ids = ids
        self._alike = alike

    def encode(self, text: str) -> NDArray[np.uint32] | None:
        """(number of ids,), or None if this text is one for the other library, which then also says what is wrong."""
        try:
            if not self._alike.all_of(text):
                return None
            ranks = self._engine.encode_to_numpy(text, disallowed_special=())
        except ValueError:  # a lone surrogate; or a million spaces in a row, which overflow its regular expressions
            return None
        return self._ids[ranks]


def fast_bpe(description: Mapping[str, Any], table: Sequence[bytes]) -> FastBPE | None:
    """The fast way for a tokenizer.json (parsed), `table` being the bytes of each id; None where nothing is proven."""
    regex = regex_of(description["pre_tokenizer"])
    added = description["added_tokens"]
    if regex is None or description["normalizer"] is not None or not all(token["special"] for token in added):
        return None
    special = {token["content"] for token in added}
    merges = _plain_merges(description["model"], special)
    if merges is None or not merges_stand_alone(merges.left, merges.right):
        return None
    alike = _Alike()
    return FastBPE([table[i] for i in merges.ids.tolist()], merges.ids, regex, alike) if alike.ascii else None


class _Merges:
    """The merges by number: 0 to 255 are the bytes, 256 + i what merge i makes. `ids`: (256 + merges,)."""

    def __init__(self, left: Sequence[int], right: Sequence[int], ids: Sequence[int]) -> None:
        self.left = np.asarray(left, dtype=np.int64)
        self.right = np.asarray(right, dtype=np.int64)
        self.ids = np.asarray(ids, dtype=np.uint32)


def _plain_merges(model: Mapping[str, Any], special: set[str]) -> _Merges | None:
    """None if the model does anything but merge bytes by its list: unknown tokens, marks, words taken whole."""
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return None
    vocabulary: dict[str, int] = model["vocab"]
    letters = sorted(byte_alphabet().items(), key=lambda pair: pair[1])
    numbers = dict(letters)
    left, right = [], []
    for one, other in model["merges"]:
        whole = one + other
        if one not in numbers or other not in numbers or whole in numbers:
            return None  # parts that come later or never, or one token from two pairs
        left.append(numbers[one])
        right.append(numbers[other])
        numbers[whole] = BYTES + len(left) - 1
    if any(token not in vocabulary or token in special for token in numbers):
        return None
    if model.get("ignore_merges") and any(token not in numbers and token not in special for token in vocabulary):
        return None  # a word that no merges make may then be a token all the same
    return _Merges(left, right, [vocabulary[token] for token in numbers])


def merges_stand_alone(left: NDArray[np.int64], right: NDArray[np.int64]) -> bool:
    """Whether the bytes of every token, merged alone by the list, end in that token.

    left, right: (merges,), what merge i joins: bytes 0 to 255 or the results 256 + j of earlier merges j < i.

    Merged alone, the bytes of a token (a, b) make a and b unless a merge across the border comes first. So the merges
    are undone from the last to the first, keeping the two parts at the border, and at each step the pair across it must
    not be one that would have been merged before the step that was undone. A pair is merged before another of the same
    kind if it stands further left.
    """
    count = len(left)
    if not count:
        return True
    children = np.concatenate([np.zeros((BYTES, 2), dtype=np.int64), np.stack([left, right], axis=1)])  # (256 + n, 2)
    keys = left * (BYTES + count) + right
    order = np.argsort(keys)
    keys = keys[order]
    a, b = left, right
    limit = BYTES + np.arange(count)  # merges from this one on come too late to matter
    while len(a):
        pair = a * (BYTES + count) + b
        place = np.minimum(np.searchsorted(keys, pair), count - 1)
        merged = np.where(keys[place] == pair, BYTES + order[place], np.iinfo(np.int64).max)
        if (merged < limit).any():
            return False
        undo_left = a > b  # of two equal parts the left one was merged first
        limit = np.where(undo_left, a, b + 1)
        more = np.maximum(a, b) >= BYTES
        a, b = np.where(undo_left, children[a, 1], a)[more], np.where(undo_left, b, children[b, 0])[more]
        limit = limit[more]
    return True


class _Alike:
    """Finds out which characters the regular expressions of both libraries put into the same classes."""

    def __init__(self) -> None:
        import tiktoken

        single = {bytes([byte]): byte for byte in range(BYTES)}
        self._ours = [normalizers.Replace(Regex(name), "") for name in CLASSES]
        self._theirs = [tiktoken.Encoding(n, pat_str=n, mergeable_ranks=single, special_tokens={}) for n in CLASSES]
        self._alike: frozenset[str] = frozenset()
        self._unlike: frozenset[str] = frozenset()
        self.ascii: bool = self._all(set(_ASCII.decode()))

    def all_of(self, text: str) -> bool:
        """Whether all characters of the text are alike. UnicodeEncodeError: it has a lone surrogate."""
        return text.isascii() or self._all(set(text.encode().translate(None, _ASCII).decode()))

    def _all(self, characters: set[str]) -> bool:
        if new := characters - self._alike - self._unlike:
            unlike = self._differing(new)
            self._unlike |= unlike  # new sets, not changed ones: another thread may be reading
            self._alike |= new - unlike
        return characters <= self._alike

    def _differing(self, characters: set[str]) -> set[str]:
        text = "".join(sorted(characters))
        differing: set[str] = set()
        for ours, theirs in zip(self._ours, self._theirs, strict=True):
            members = bytes(theirs.encode_ordinary(text)).decode()  # what a rule does not match is left out
            differing |= characters.difference(ours.normalize_str(text)).symmetric_difference(members)
        return differing
