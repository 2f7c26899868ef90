"""What SentencePiece models and llama2.c's tokenizer have in common: a vocabulary of pieces in which ▁ is a space.

Every stretch of text between special tokens is a text of its own: where the model puts a space before a text (the
"dummy prefix" of Llama 2 and others), encoding puts it before each stretch, and decoding takes it away from each.

Two things do not come back as they were: the letter ▁ (U+2581) itself, which is read as a space, and what the model's
own normalization changes.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigpt.config import RequestError, WorkError
from minigpt.tokenizer.fuzz import differing_text, fuzz_texts
from minigpt.tokenizer.huggingface import END_TOKENS, KEPT_SETTINGS
from minigpt.tokenizer.model_proto import SPACE, ModelDescription, PieceKind
from minigpt.tokenizer.unified import Inexact, as_backend

NATIVE_KEY = "minigpt_native"
"""Key of tokenizer_config.json: the file beside it that is the tokenizer, of which tokenizer.json is a translation."""


class PieceTokenizer:
    """A vocabulary of pieces as a `minigpt.tokenizer.Tokenizer`; subclasses turn text into ids (`_ids`).

    `settings` is the content of a tokenizer_config.json, `native_files` (name to content) what `save` writes: the file
    `native_name` that the tokenizer is read from, and others that go with it.
    """

    native_name: str

    def __init__(
        self,
        model: ModelDescription,
        native_files: Mapping[str, bytes],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self._native_files = dict(native_files)
        self._settings = {key: value for key, value in (settings or {}).items() if key in KEPT_SETTINGS}
        self._table = [piece.bytes for piece in model.pieces]
        self.vocab_size: int = len(model.pieces)
        self._controls = {p.text: i for i, p in enumerate(model.pieces) if p.kind is PieceKind.control}
        unknown = {p.text: i for i, p in enumerate(model.pieces) if p.kind is PieceKind.unknown}
        self.special_tokens: dict[str, int] = unknown | self._controls
        self._special_ids = frozenset(self.special_tokens.values())
        self.eot_id: int | None = self._find_end()
        self.fingerprint: str = _fingerprint(model)
        self.exact_bytes: bool = not (model.dummy_prefix or model.space_is_suffix or model.denormalizes)

    # --- text to ids

    def _ids(self, text: str) -> list[int]:
        """Ids of a stretch of text, in which nothing is special. RequestError: a lone surrogate."""
        raise NotImplementedError

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        if not (allow_special and self._controls):
            return self._ids(text)
        longest_first = sorted(self._controls, key=len, reverse=True)  # <unk> is nothing that one would ask for
        ids: list[int] = []
        for part in re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text):
            ids += [self._controls[part]] if part in self._controls else self._ids(part)
        return ids

    def encode_batch(self, texts: Iterable[str], *, allow_special: bool = False) -> list[list[int]]:
        return [self.encode(text, allow_special=allow_special) for text in texts]

    def encode_arrays(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        return [np.asarray(self._ids(text), dtype=np.uint32) for text in texts]

    # --- ids to text

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        text = bytearray()
        begins = True
        for i in map(int, ids):
            if not 0 <= i < self.vocab_size:
                raise RequestError(f"token id {i} is outside the vocabulary of {self.vocab_size} ids")
            if i in self._special_ids:
                text += b"" if skip_special else self._table[i]
            else:
                strips = begins and self.model.dummy_prefix and self.model.pieces[i].kind is not PieceKind.byte
                text += self._table[i].removeprefix(b" ") if strips else self._table[i]
            begins = self.model.pieces[i].kind is PieceKind.control
        return text.decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes | None:
        if not self.exact_bytes or token_id in self._special_ids or not 0 <= token_id < self.vocab_size:
            return None
        return self._table[token_id]

    def byte_lengths(self) -> NDArray[np.int64]:
        lengths = np.fromiter((len(piece) for piece in self._table), dtype=np.int64, count=self.vocab_size)
        lengths[list(self._special_ids)] = 0
        return lengths

    # --- files

    def save(self, folder: Path) -> None:
        """Write the native file, tokenizer_config.json, and tokenizer.json if it can say exactly the same."""
        settings = {NATIVE_KEY: self.native_name, **self._settings}
        files = dict(self._native_files)
        if isinstance(self._translation, str):
            # transformers' classes for these models would translate the native file in ways of their own.
            settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
            files["tokenizer.json"] = self._translation.encode()
        if self.eot_id is not None:
            begin = self.eot_id if self.model.begin_id is None else self.model.begin_id
            settings.setdefault("eos_token", self.model.pieces[self.eot_id].text)
            settings.setdefault("bos_token", self.model.pieces[begin].text)
        files["tokenizer_config.json"] = (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
        for name, content in files.items():
            try:
                (Path(folder) / name).write_bytes(content)
            except OSError as error:
                raise WorkError(f"cannot write {Path(folder) / name}: {error.strerror}") from error

    def tokenizer_json(self) -> str:
        """The tokenizer.json. RequestError: none can say exactly the same as the native file."""
        if isinstance(self._translation, Inexact):
            raise RequestError(
                f"this tokenizer cannot be exported as tokenizer.json: {self._translation}; "
                f"use its own file {self.native_name}"
            )
        return self._translation

    @cached_property
    def _translation(self) -> "str | Inexact":
        """The tokenizer.json, tried out on many texts, or why there is none."""
        try:
            backend = as_backend(self.model)
        except Inexact as reason:
            return reason
        backend.encode_special_tokens = True
        texts = [
            text for text in fuzz_texts(self._texts_of_pieces()) if not any(s in text for s in self.special_tokens)
        ]
        text = differing_text(self._ids, lambda text: backend.encode(text, add_special_tokens=False).ids, texts)
        if text is not None:
            return Inexact(f"the translation gives other ids for {text[:40]!r}")
        return backend.to_str()

    def _texts_of_pieces(self) -> list[str]:
        kinds = (PieceKind.normal, PieceKind.user_defined)
        return [piece.text.replace(SPACE, " ") for piece in self.model.pieces if piece.kind in kinds]

    # --- set-up

    def _find_end(self) -> int | None:
        stated = None if self.model.end_id is None else self.model.pieces[self.model.end_id].text
        for name in (END_TOKENS[0], stated, *END_TOKENS[1:]):
            if name in self.special_tokens:
                return self.special_tokens[name]
        return None


def _fingerprint(model: ModelDescription) -> str:
    pieces = [
        (i, piece.text, piece.score, piece.kind)
        for i, piece in enumerate(model.pieces)
        if piece.kind not in (PieceKind.control, PieceKind.unused)
    ]
    flags = (model.algorithm, model.byte_fallback, model.dummy_prefix, model.remove_extra_spaces, model.escape_spaces)
    meaning = [pieces, flags, model.space_is_suffix, hashlib.sha256(model.character_map).hexdigest()]
    return hashlib.sha256(json.dumps(meaning, separators=(",", ":")).encode()).hexdigest()
