"""SentencePiece models (Kudo & Richardson 2018, arXiv:1808.06226), run by the library that made them.

Needs the package `sentencepiece`: pip install "minigpt[sentencepiece]".
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigpt.config import RequestError
from minigpt.tokenizer.gpt2 import read_bytes
from minigpt.tokenizer.huggingface import refuse_surrogates
from minigpt.tokenizer.model_proto import BPE, SPACE, ModelDescription, PieceKind, read_model
from minigpt.tokenizer.pieces import PieceTokenizer

MODEL_FILE = "tokenizer.model"

PART_CHARACTERS = {BPE: 1 << 16}
DEFAULT_PART_CHARACTERS = 1 << 19
"""Longer texts are cut into parts of about this size: the library takes some hundred bytes of memory for a character of
BPE, some dozen for one of a unigram model."""

_SAFE_CUT = re.compile(r"[A-Za-z](?= [A-Za-z])")
_ACROSS_CUT = re.compile(f"[A-Za-z][ {SPACE}]")


class SentencePieceTokenizer(PieceTokenizer):
    """A SentencePiece model as a `minigpt.tokenizer.Tokenizer`. Ids are the library's for the same text."""

    native_name = MODEL_FILE

    def __init__(
        self,
        content: bytes,
        *,
        settings: Mapping[str, Any] | None = None,
        native_files: Mapping[str, bytes] | None = None,
    ) -> None:
        """`content` is that of a .model file. ValueError: it is none."""
        library = sentencepiece_library()
        self._processor = library.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(content)
        except RuntimeError as error:
            raise ValueError(library_reason(error)) from error
        super().__init__(read_model(content), {**(native_files or {}), MODEL_FILE: content}, settings)
        self._part_characters = PART_CHARACTERS.get(self.model.algorithm, DEFAULT_PART_CHARACTERS)
        self._cuttable = _is_cuttable(self.model)

    def _ids(self, text: str) -> list[int]:
        return self._encode([text])[0]

    def encode_batch(self, texts: Iterable[str], *, allow_special: bool = False) -> list[list[int]]:
        if allow_special:
            return super().encode_batch(texts, allow_special=True)
        return self._encode(list(texts), threads=-1)

    def encode_arrays(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        return [np.asarray(ids, dtype=np.uint32) for ids in self._encode(texts)]

    def _encode(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        parts = [part for text in texts for part in self._parts(text)]
        try:
            found: list[list[int]] = self._processor.Encode(parts, out_type=int, num_threads=threads)
        except Exception as error:  # the library raises plain RuntimeErrors, and others by version
            for text in texts:
                refuse_surrogates(text)
            raise RequestError(f"this tokenizer cannot encode the text: {error}") from error
        if len(parts) == len(texts):
            return found
        ids = iter(found)
        return [[i for _ in self._parts(text) for i in next(ids)] for text in texts]

    def _parts(self, text: str) -> Iterator[str]:
        """The text, cut where no piece can reach across, so that the parts' ids are those of the whole.

        The cut is before a single space between ASCII letters, which is no place for a normalizer to do anything. The
        space stays with what follows, unless the model puts one there by itself.
        """
        start = 0
        while self._cuttable and len(text) - start > self._part_characters:
            cut = _SAFE_CUT.search(text, start + self._part_characters - 1)
            if cut is None:
                break
            yield text[start : cut.end()]
            start = cut.end() + self.model.dummy_prefix
        yield text[start:]


def _is_cuttable(model: ModelDescription) -> bool:
    if model.space_is_suffix or (model.remove_extra_spaces and not model.dummy_prefix):
        return False
    kinds = (PieceKind.normal, PieceKind.user_defined)
    return not any(_ACROSS_CUT.search(piece.text) for piece in model.pieces if piece.kind in kinds)


def load_sentencepiece(
    path: Path, *, settings: Mapping[str, Any] | None = None, native_files: Mapping[str, bytes] | None = None
) -> SentencePieceTokenizer:
    """Tokenizer of a .model file, or of a folder with a tokenizer.model.

    RequestError: there is none, it is damaged, or the package `sentencepiece` is missing.
    """
    path = path / MODEL_FILE if path.is_dir() else path
    content = read_bytes(path)
    try:
        return SentencePieceTokenizer(content, settings=settings, native_files=native_files)
    except ValueError as error:
        raise RequestError(f"{path} is not a SentencePiece model that can be used: {error}") from error


def sentencepiece_library() -> ModuleType:
    """The module `sentencepiece`. RequestError: it is not installed."""
    try:
        import sentencepiece
    except ImportError:
        raise RequestError(
            'SentencePiece tokenizers need the package sentencepiece: pip install "minigpt[sentencepiece]"'
        ) from None
    library: ModuleType = sentencepiece
    return library


def library_reason(error: RuntimeError) -> str:
    """The library's message without its place in the source; where nothing is left, the file is not its format."""
    said = re.sub(r"^[A-Z_]+: |\S+\.cc\(\d+\) \[.*\] ?", "", str(error)).strip()
    return said.rstrip(".") or "it is damaged, cut short, or of another format"
