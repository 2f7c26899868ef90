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
from minigpt.tokenizer.llama2c import BIN_FILE, load_llama2c
from minigpt.tokenizer.pieces import NATIVE_KEY
from minigpt.tokenizer.protocol import Tokenizer
from minigpt.tokenizer.sentencepiece import MODEL_FILE, load_sentencepiece
from minigpt.tokenizer.sentencepiece_training import train_sentencepiece
from minigpt.tokenizer.tiktoken_ranks import ENCODINGS, SUFFIX, find_rank_file, load_ranks

RANK_FILES = tuple(f"{name}{SUFFIX}" for name in ENCODINGS)
NATIVE_FILES = (*(name for pair in FILE_PAIRS for name in pair), *RANK_FILES, "chat_template.jinja")
"""Files beside a tokenizer.json that are copied with it."""

Progress = Callable[[int], None]
"""Called with the number of characters of training text read so far."""


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Tokenizer of a file, or of a folder that has one, such as a run's.

    Files: tokenizer.json; encoder.json + vocab.bpe, or vocab.json + merges.txt; a SentencePiece .model; llama2.c's
    tokenizer.bin; a rank file of tiktoken. RequestError: there is none, or it is damaged.
    """
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            return _load_folder(path)
        if not path.exists():
            raise RequestError(f"tokenizer {path} does not exist")
        if path.name in (name for pair in FILE_PAIRS for name in pair):
            return load_gpt2(path.parent)
        if path.suffix == SUFFIX:
            return load_ranks(path)
        return _load_native(path) if path.suffix in (".model", ".bin") else _load_json(path)
    except OSError as error:  # a folder that may not be entered
        raise RequestError(f"cannot read tokenizer {path}: {error.strerror}") from error


def build_tokenizer(
    config: TokenizerConfig, texts: Callable[[], Iterable[str]], on_progress: Progress | None = None
) -> Tokenizer:
    """Tokenizer of a run: trained on the texts (`texts` is called only then), or loaded from `config.path`."""
    size, special = config.vocab_size, config.special_tokens
    match config.kind:
        case "char":
            return CharTokenizer.from_texts(texts())
        case "bpe":
            return train_bpe(texts(), size, config.pattern, special, on_progress)
        case "unigram":
            return train_sentencepiece(texts(), size, "unigram", special, on_progress)
        case "sentencepiece-bpe":
            return train_sentencepiece(texts(), size, "bpe", special, on_progress)
    if config.path is None:
        raise RequestError(f"tokenizer.path is needed with tokenizer.kind={config.kind}: say where the tokenizer is")
    path = Path(config.path).expanduser()
    if config.kind == "tiktoken" and config.encoding == "gpt2" and path.suffix == SUFFIX:
        return load_ranks(path, "r50k_base")  # the same tokens; gpt2 itself was published as other files
    if config.kind == "gpt2" or (config.kind == "tiktoken" and config.encoding == "gpt2"):
        return load_gpt2(path if path.is_dir() else path.parent)
    if config.kind == "tiktoken":
        return load_ranks(find_rank_file(path, config.encoding), config.encoding)
    return load_tokenizer(path)


def _load_folder(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").exists():
        return _load_json(folder / "tokenizer.json")
    if any((folder / name).exists() for pair in FILE_PAIRS for name in pair):
        return load_gpt2(folder)
    for name in (MODEL_FILE, BIN_FILE):
        if (folder / name).exists():
            return _load_native(folder / name)
    for name in RANK_FILES:
        if (folder / name).exists():
            return load_ranks(folder / name)
    if (folder / "tokenizer").is_dir():
        return _load_folder(folder / "tokenizer")
    raise RequestError(
        f"folder {folder} has no tokenizer: neither tokenizer.json nor encoder.json + vocab.bpe, {MODEL_FILE}, "
        f"{BIN_FILE} or a rank file of tiktoken"
    )


def _load_native(path: Path) -> Tokenizer:
    """Tokenizer of a SentencePiece .model or a llama2.c .bin, with the settings beside it."""
    settings, others = _files_beside(path)
    load = load_sentencepiece if path.suffix == ".model" else load_llama2c
    return load(path, settings=settings, native_files=others)


def _files_beside(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The content of tokenizer_config.json (empty if there is none), and the files that are copied as they are."""
    settings_path = path.parent / "tokenizer_config.json"
    settings = _read_json(settings_path) if settings_path.exists() else {}
    return settings, {n: read_bytes(path.parent / n) for n in NATIVE_FILES if (path.parent / n).is_file()}


def _load_json(path: Path) -> Tokenizer:
    settings, native = _files_beside(path)
    if (name := settings.get(NATIVE_KEY)) in (MODEL_FILE, BIN_FILE) and (path.parent / name).is_file():
        return _load_native(path.parent / name)  # what the tokenizer.json is a translation of
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
