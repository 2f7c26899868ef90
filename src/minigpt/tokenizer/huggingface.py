"""Any tokenizer that the Hugging Face `tokenizers` library can run, behind this package's protocol.

The library does the work; this wrapper makes its meaning exact. Special tokens' names in a text are text unless asked
for (the library's default is the reverse). Added tokens that are *not* special are vocabulary (for example runs of
spaces in GPT-NeoX's): they are found in every text, as transformers and llama.cpp find them, and so belong to the
fingerprint.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken

from minigpt.config import RequestError, WorkError
from minigpt.tokenizer.byte_level import unspelled
from minigpt.tokenizer.fast import FastBPE, fast_bpe
from minigpt.tokenizer.patterns import PIECE_CHARACTERS, regex_of, safe_pieces

END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
"""Names by which a tokenizer that does not say so itself is known to end a document, the likeliest first."""

KEPT_SETTINGS = (
    *("bos_token", "eos_token", "unk_token", "pad_token", "additional_special_tokens", "extra_special_tokens"),
    *("chat_template", "model_max_length"),
)
"""Keys of a loaded tokenizer_config.json that `save` writes again. The rest is about classes not used here."""

FAST_AFTER = 1 << 18
"""Characters of text after which it pays to find out whether there is a faster way, which takes a tenth of a second."""

BATCH_TEXTS = 1024
"""Texts given to the library at once, which bounds what it holds besides the ids."""


class HuggingFaceTokenizer:
    """A `tokenizers.Tokenizer` as a `minigpt.tokenizer.Tokenizer`.

    `backend` is used as it is, but for what would make ids depend on anything besides the text: truncation, padding and
    BPE dropout are switched off. `settings` is the content of a tokenizer_config.json; `native_files` (name to content)
    are written by `save` beside tokenizer.json. `cuttable`: whether the ids of a text are those of its pieces as
    `patterns.safe_pieces` cuts them.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        settings: Mapping[str, Any] | None = None,
        native_files: Mapping[str, bytes] | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        if getattr(backend.model, "dropout", None):
            backend.model.dropout = None
        self._settings = {key: value for key, value in (settings or {}).items() if key in KEPT_SETTINGS}
        self._native_files = dict(native_files or {})
        self._json = backend.to_str()
        self._plain = backend
        self._plain.encode_special_tokens = True

        description = json.loads(self._json)
        added = description["added_tokens"]
        ids = backend.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(ids.values(), default=-1) + 1
        self.special_tokens: dict[str, int] = {a["content"]: ids[a["content"]] for a in added if a["special"]}
        self.eot_id: int | None = self._find_end()
        self.fingerprint: str = _fingerprint(description)
        self.exact_bytes: bool = _spelling(description["decoder"]) != "other"
        self._special_ids = frozenset(self.special_tokens.values())
        # Added tokens may span a cut, and a normaliser may change what is around one.
        only_special = all(a["special"] for a in added)
        plain = only_special and description["normalizer"] is None
        self.cuttable: bool = plain and regex_of(description["pre_tokenizer"]) is not None
        self._table = self._byte_table(description, ids)
        self._spelled_specials = self._specials_that_text_can_spell(description)
        self._fast: FastBPE | None = None
        self._fast_after = FAST_AFTER  # characters
        self._fast_lock = threading.Lock()

    # --- text to ids

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        if allow_special or not self.cuttable or len(text) <= PIECE_CHARACTERS:
            return self._encode([text], allow_special)[0]
        refuse_surrogates(text)  # here, where their position in the whole text is known
        pieces = list(safe_pieces(text))
        ids: list[int] = []
        for start in range(0, len(pieces), BATCH_TEXTS // 16):
            for part in self._encode(pieces[start : start + BATCH_TEXTS // 16], allow_special):
                ids.extend(part)
        return ids

    def encode_batch(self, texts: Iterable[str], *, allow_special: bool = False) -> list[list[int]]:
        result: list[list[int]] = []
        waiting: list[str] = []
        size = 0
        for text in texts:
            if len(text) > PIECE_CHARACTERS:
                result += self._encode(waiting, allow_special)
                result.append(self.encode(text, allow_special=allow_special))
                waiting, size = [], 0
                continue
            waiting.append(text)
            size += len(text)
            if len(waiting) == BATCH_TEXTS or size > PIECE_CHARACTERS * BATCH_TEXTS // 16:
                result += self._encode(waiting, allow_special)
                waiting, size = [], 0
        return result + self._encode(waiting, allow_special)

    def encode_arrays(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        fast = self._fast_engine(sum(map(len, texts)))
        if fast is None:
            return [np.asarray(ids, dtype=np.uint32) for ids in self.encode_batch(texts)]
        return [self._encode_array(text, fast) for text in texts]

    def _encode_array(self, text: str, fast: FastBPE) -> NDArray[np.uint32]:
        """(number of ids,), piece by piece, so that one odd character does not slow down the whole of a long text."""
        pieces = safe_pieces(text) if len(text) > PIECE_CHARACTERS else [text]
        parts: list[NDArray[np.uint32]] = []
        for piece in pieces:
            part = fast.encode(piece)
            if part is None:
                try:
                    part = np.asarray(self._encode([piece], allow_special=False)[0], dtype=np.uint32)
                except RequestError:
                    refuse_surrogates(text)  # here, where their position in the whole text is known
                    raise
            parts.append(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _fast_engine(self, characters: int) -> FastBPE | None:
        """The fast way, if there is one and so much text has been encoded that finding out has paid."""
        with self._fast_lock:
            if self._fast_after > 0:
                self._fast_after -= characters
                if self._fast_after <= 0 and self.cuttable and not self._spelled_specials:
                    self._fast = fast_bpe(json.loads(self._json), self._table)
            return self._fast

    def _encode(self, texts: list[str], allow_special: bool) -> list[list[int]]:
        backend = self._with_special if allow_special else self._plain
        try:  # "fast": without the offsets and token strings that nobody reads
            batch = [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
        except TypeError as error:  # the library's word for a str that is not UTF-8
            for text in texts:
                refuse_surrogates(text)
            raise error
        except Exception as error:  # the library raises plain Exceptions
            raise RequestError(f"this tokenizer cannot encode the text: {error}") from error
        if self._spelled_specials and not allow_special:
            for ids in batch:
                if found := self._spelled_specials.intersection(ids):
                    name = self._plain.id_to_token(min(found))
                    raise RequestError(
                        f"the text contains {name!r}, which this tokenizer can only read as its special token: "
                        "remove it from the text, or allow special tokens"
                    )
        return batch

    @cached_property
    def _with_special(self) -> tokenizers.Tokenizer:
        """The same tokenizer, finding special tokens in text. An object of its own: no call changes one in use."""
        return tokenizers.Tokenizer.from_str(self._json)

    # --- ids to text

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise RequestError(f"token id {i} is outside the vocabulary of {self.vocab_size} ids")
        if not self.exact_bytes:
            return self._plain.decode(ids, skip_special_tokens=skip_special)
        if skip_special:
            ids = [i for i in ids if i not in self._special_ids]
        return b"".join([self._table[i] for i in ids]).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes | None:
        if not self.exact_bytes or token_id in self._special_ids or not 0 <= token_id < self.vocab_size:
            return None
        return self._table[token_id] or None

    def byte_lengths(self) -> NDArray[np.int64]:
        lengths = np.fromiter((len(piece) for piece in self._table), dtype=np.int64, count=self.vocab_size)
        lengths[list(self._special_ids)] = 0
        return lengths

    # --- files

    def save(self, folder: Path) -> None:
        # transformers' class for GPT-2 (or Qwen, ...) would rebuild the pre-tokenizer from vocabulary and merges alone;
        # this one runs tokenizer.json as it is.
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **self._settings,
        }
        end = next((name for name, i in self.special_tokens.items() if i == self.eot_id), None)
        if end is not None:
            settings.setdefault("eos_token", end)
            settings.setdefault("bos_token", end)
        files = {
            **self._native_files,
            "tokenizer.json": self._json.encode(),
            "tokenizer_config.json": (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode(),
        }
        for name, content in files.items():
            try:
                (Path(folder) / name).write_bytes(content)
            except OSError as error:
                raise WorkError(f"cannot write {Path(folder) / name}: {error.strerror}") from error

    # --- set-up

    def _find_end(self) -> int | None:
        stated = self._settings.get("eos_token")
        if isinstance(stated, dict):  # an AddedToken written out
            stated = stated.get("content")
        # <|endoftext|> before a stated one: chat models state the end of a turn and keep <|endoftext|> for documents.
        for name in (END_TOKENS[0], stated, *END_TOKENS[1:]):
            if name in self.special_tokens:
                return self.special_tokens[name]
        return None

    def _byte_table(self, description: dict[str, Any], ids: dict[str, int]) -> list[bytes]:
        """Bytes of every id, its name's for an added token, b"" for a number that is no id."""
        spell: Callable[[str], bytes] = _guess_bytes
        if self.exact_bytes:
            spell = unspelled if _spelling(description["decoder"]) == "bytes" else str.encode
        table = [b""] * self.vocab_size
        for token, i in ids.items():
            table[i] = spell(token)
        for token in description["added_tokens"]:
            table[ids[token["content"]]] = token["content"].encode()
        return table

    def _specials_that_text_can_spell(self, description: dict[str, Any]) -> frozenset[int]:
        """Special tokens that text gives in spite of all: Unigram and WordLevel models have them among their words."""
        unknown = description["model"].get("unk_token")
        found: set[int] = set()
        for name, i in self.special_tokens.items():
            if name == unknown or description["model"].get("unk_id") == i:
                continue
            try:
                encoding = self._plain.encode(name, add_special_tokens=False)
            except Exception:  # the name has characters outside the vocabulary: text cannot spell it
                continue
            if i in encoding.ids:
                found.add(i)
        return frozenset(found)


def add_special_tokens(backend: tokenizers.Tokenizer, names: Sequence[str]) -> None:
    """Append special tokens, their ids after all others. RequestError: a name is empty, repeated or a word already."""
    vocabulary = backend.get_vocab(with_added_tokens=True)
    for position, name in enumerate(names):
        if not name or name in names[:position]:
            raise RequestError(f"special token {name!r} is {'repeated' if name else 'empty'}: give each its own name")
        if name in vocabulary:
            raise RequestError(f"special token {name!r} is a token of text already: choose a name like <|{name}|>")
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])


def refuse_surrogates(text: str) -> None:
    """RequestError if the text has a lone surrogate, a code point that no UTF-8 text can have."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text is not valid Unicode: a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}"
        ) from error


def _fingerprint(description: dict[str, Any]) -> str:
    meaning = {
        "model": description["model"],
        "normalizer": description["normalizer"],
        "pre_tokenizer": description["pre_tokenizer"],
        "added_tokens": [token for token in description["added_tokens"] if not token["special"]],
    }
    return hashlib.sha256(json.dumps(meaning, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _spelling(decoder: Any) -> str:
    """How tokens spell text: "bytes" (GPT-2's alphabet of 256 letters), "characters" (as they are) or "other"."""
    match decoder:
        case {"type": "Sequence", "decoders": parts}:
            kinds = [part["type"] for part in parts]
        case {"type": kind}:
            kinds = [kind]
        case _:
            kinds = []  # tokens are joined by spaces
    kinds = [kind for kind in kinds if kind != "Fuse"] or kinds[:1]
    return {("ByteLevel",): "bytes", ("Fuse",): "characters"}.get(tuple(kinds), "other")


def _guess_bytes(token: str) -> bytes:
    """SentencePiece's spaces and byte tokens, WordPiece's continuation mark."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.removeprefix("##").replace("\u2581", " ").encode()
