"""The tokenizer.bin of llama2.c (https://github.com/karpathy/llama2.c): a BPE vocabulary with scores, merged by score.

The file: int32 length of the longest piece, then for each piece float32 score, int32 length, its bytes, all
little-endian; nothing says how many there are. Ids 0 to 2 are <unk>, <s> and </s>, 3 to 258 the 256 bytes.

Encoding as in its run.c: a space before the text, each character a piece (or its bytes, where it is none), then again
and again the two neighbours whose joint piece has the highest score become that piece, the leftmost of equals.
"""

import heapq
import math
import re
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from minigpt.config import RequestError
from minigpt.tokenizer.gpt2 import read_bytes
from minigpt.tokenizer.huggingface import refuse_surrogates
from minigpt.tokenizer.model_proto import BPE, ModelDescription, Piece, PieceKind
from minigpt.tokenizer.pieces import PieceTokenizer

BIN_FILE = "tokenizer.bin"
SPECIAL = ("<unk>", "<s>", "</s>")
BYTES = 256
CACHED_WORDS = 1 << 16
CACHED_CHARACTERS = 64  # longer words hardly come twice


class Llama2cTokenizer(PieceTokenizer):
    """A llama2.c vocabulary as a `minigpt.tokenizer.Tokenizer`. Spaces are spaces in it, no ▁."""

    native_name = BIN_FILE

    def __init__(
        self,
        content: bytes,
        *,
        settings: Mapping[str, Any] | None = None,
        native_files: Mapping[str, bytes] | None = None,
    ) -> None:
        """`content` is that of a tokenizer.bin. ValueError: it is none."""
        pieces = _read_pieces(content)
        model = ModelDescription(pieces, BPE, escape_spaces=False, begin_id=1, end_id=2)
        super().__init__(model, {**(native_files or {}), BIN_FILE: content}, settings)
        self._piece_ids: dict[str, int] = {}
        for i, piece in enumerate(pieces):
            if piece.kind is PieceKind.normal:
                self._piece_ids.setdefault(piece.text, i)
        # Where no piece has a space after something else, nothing merges across the beginning of a word.
        words_are_apart = not any(re.search("[^ ] ", text) for text in self._piece_ids)
        self._words = re.compile(" *[^ ]+| +" if words_are_apart else r"[\s\S]+")
        self._cached_merge = lru_cache(CACHED_WORDS)(self._merge)

    def _ids(self, text: str) -> list[int]:
        refuse_surrogates(text)
        ids: list[int] = []
        for word in self._words.findall(" " + text if text else ""):
            ids += self._cached_merge(word) if len(word) <= CACHED_CHARACTERS else self._merge(word)
        return ids

    def _merge(self, word: str) -> list[int]:
        """Ids of a text without the space before it."""
        parts: list[str] = list(word)  # "" where a part has gone into its left neighbour
        after = list(range(1, len(word) + 1))
        before = list(range(-1, len(word) - 1))
        waiting: list[tuple[float, int, int, str]] = []  # best first: highest score, then leftmost

        def propose(left: int) -> None:
            if left >= 0 and after[left] < len(parts):
                joint = parts[left] + parts[after[left]]
                if (i := self._piece_ids.get(joint)) is not None:
                    heapq.heappush(waiting, (-self.model.pieces[i].score, left, after[left], joint))

        for left in range(len(word) - 1):
            propose(left)
        while waiting:
            _, left, right, joint = heapq.heappop(waiting)
            if not parts[left] or not parts[right] or parts[left] + parts[right] != joint:
                continue  # one of the two has merged with another since
            parts[left], parts[right] = joint, ""
            after[left] = after[right]
            if after[left] < len(parts):
                before[after[left]] = left
            propose(before[left])
            propose(left)
        ids: list[int] = []
        for part in filter(None, parts):
            known = self._piece_ids.get(part)
            ids += [len(SPECIAL) + byte for byte in part.encode()] if known is None else [known]
        return ids


def load_llama2c(
    path: Path, *, settings: Mapping[str, Any] | None = None, native_files: Mapping[str, bytes] | None = None
) -> Llama2cTokenizer:
    """Tokenizer of a tokenizer.bin, or of a folder with one. RequestError: there is none, or it is damaged."""
    path = path / BIN_FILE if path.is_dir() else path
    content = read_bytes(path)
    try:
        return Llama2cTokenizer(content, settings=settings, native_files=native_files)
    except ValueError as error:
        raise RequestError(f"{path} is not a tokenizer.bin of llama2.c: {error}") from error


def _read_pieces(content: bytes) -> tuple[Piece, ...]:
    """ValueError: the content is cut short or something else."""
    if len(content) < 4:
        raise ValueError("it is empty or cut short")
    (longest,) = struct.unpack_from("<i", content)
    found: list[tuple[float, str]] = []
    at = 4
    while at < len(content):
        if at + 8 > len(content):
            raise ValueError(f"it ends in the middle of piece {len(found)}")
        score, size = struct.unpack_from("<fi", content, at)
        at += 8
        if not 0 <= size <= longest or not math.isfinite(score):
            raise ValueError(f"piece {len(found)} has the length {size} and the score {score}")
        if at + size > len(content):
            raise ValueError(f"it ends in the middle of piece {len(found)}")
        try:
            found.append((score, content[at : at + size].decode()))
        except UnicodeDecodeError:
            raise ValueError(f"piece {len(found)} is not UTF-8") from None
        at += size
    names = (*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(BYTES)))
    for i, name in enumerate(names):
        if i >= len(found) or found[i][1].strip("\n") != name:
            raise ValueError(f"piece {i} is not {name}")
    kinds = (PieceKind.unknown, PieceKind.control, PieceKind.control, *[PieceKind.byte] * BYTES)
    first = [Piece(name, score, kind) for name, kind, (score, _) in zip(names, kinds, found, strict=False)]
    return (*first, *(Piece(text, score, PieceKind.normal) for score, text in found[len(names) :]))
