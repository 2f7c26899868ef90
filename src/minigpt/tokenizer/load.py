"""Which tokenizer a path or a config means."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import tokenizers

from minigpt.config import RequestError, TokenizerConfig
from minigpt.tokenizer.bpe import train_bpe
from minigpt.tokenizer.char import CharTokenizer, is_char
from minigpt.tokenizer.checks import check_vocabulary
from minigpt.tokenizer.gpt2 import FILE_PAIRS, load_gpt2, read_bytes
from minigpt.tokenizer.huggingface import HuggingFaceTokenizer
from minigpt.tokenizer.protocol import Tokenizer

NATIVE_FILES = (*(name for pair in FILE_PAIRS for name in pair), "chat_template.jinja")
"""Files beside a tokenizer.json that are copied with it."""


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Tokenizer of a tokenizer.json, of its folder, of a folder with encoder.json + vocab.bpe (or vocab.json +
    merges.txt), or of a run folder. RequestError: there is none, or it is damaged."""
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            return _load_folder(path)
        if not path.exists():
            raise RequestError(f"tokenizer {path} does not exist")
        if path.name in (name for pair in FILE_PAIRS for name in pair):
            return load_gpt2(path.parent)
        return _load_json(path)
    except OSError as error:  # a folder that may not be entered
        raise RequestError(f"cannot read tokenizer {path}: {error.strerror}") from error


def build_tokenizer(config: TokenizerConfig, texts: Callable[[], Iterable[str]]) -> Tokenizer:
    """Tokenizer of a run: trained on the texts (char, bpe; `texts` is called only then) or loaded (file, gpt2)."""
    if config.kind == "char":
        return CharTokenizer.from_texts(texts())
    if config.kind == "bpe":
        return train_bpe(texts(), config.vocab_size, config.pattern, config.special_tokens)
    if config.path is None:
        raise RequestError(f"tokenizer.path is needed with tokenizer.kind={config.kind}: say where the tokenizer is")
    path = Path(config.path).expanduser()
    if config.kind == "gpt2":
        return load_gpt2(path if path.is_dir() else path.parent)
    return load_tokenizer(path)


def _load_folder(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").exists():
        return _load_json(folder / "tokenizer.json")
    if any((folder / name).exists() for pair in FILE_PAIRS for name in pair):
        return load_gpt2(folder)
    if (folder / "tokenizer").is_dir():
        return _load_folder(folder / "tokenizer")
    raise RequestError(f"folder {folder} has no tokenizer: neither tokenizer.json nor encoder.json + vocab.bpe")


def _load_json(path: Path) -> Tokenizer:
    content = _read_json(path)
    model = content.get("model")
    if not isinstance(model, dict):
        raise RequestError(f'{path} is not a tokenizer.json of the Hugging Face library: it has no "model" object')
    try:
        if "merges" in model:
            pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
            check_vocabulary(model["vocab"], pairs, model.get("continuing_subword_prefix") or "")
        elif isinstance(model.get("vocab"), dict):
            check_vocabulary(model["vocab"])
        backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # wrong types on the way, and the library's plain Exceptions
        raise RequestError(f"{path} is not a tokenizer.json that can be used: {error}") from error
    if not backend.get_vocab_size(with_added_tokens=True):
        raise RequestError(f"{path} is a tokenizer with an empty vocabulary")
    settings_path = path.parent / "tokenizer_config.json"
    settings = _read_json(settings_path) if settings_path.exists() else {}
    native = {name: read_bytes(path.parent / name) for name in NATIVE_FILES if (path.parent / name).is_file()}
    kind = CharTokenizer if is_char(backend) else HuggingFaceTokenizer
    return kind(backend, settings=settings, native_files=native)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_bytes(path))
    except ValueError as error:  # also UnicodeDecodeError
        raise RequestError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise RequestError(f"{path} is not a JSON object")
    return content
