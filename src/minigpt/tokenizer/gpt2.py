"""GPT-2's vocabulary from its native files, encoder.json and vocab.bpe (Radford et al. 2019)."""

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models

from minigpt.config import RequestError
from minigpt.tokenizer.checks import check_vocabulary
from minigpt.tokenizer.huggingface import HuggingFaceTokenizer
from minigpt.tokenizer.patterns import pre_tokenizer

FILE_PAIRS = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
"""Names of the vocabulary and the merges: OpenAI's, and those of the same content in older Hugging Face folders."""


def load_gpt2(folder: Path) -> HuggingFaceTokenizer:
    """Tokenizer of a folder with one of the two pairs of files.

    A word of several letters that no merge makes (GPT-2 has one, <|endoftext|>) can only be a special token.
    RequestError: a file is missing or is not what its name says.
    """
    for pair in FILE_PAIRS:
        present = [name for name in pair if (folder / name).is_file()]
        if len(present) == 2:
            return _build(folder, *pair)
        if present:
            missing = next(name for name in pair if name not in present)
            raise RequestError(f"tokenizer folder {folder} has {present[0]} but no {missing}: both files are needed")
    raise RequestError(f"tokenizer folder {folder} has no encoder.json and vocab.bpe")


def _build(folder: Path, vocabulary_name: str, merges_name: str) -> HuggingFaceTokenizer:
    files = {name: read_bytes(folder / name) for name in (vocabulary_name, merges_name)}
    try:
        ids = json.loads(files[vocabulary_name])
        check_vocabulary(ids)
    except ValueError as error:  # also JSONDecodeError and UnicodeDecodeError
        raise RequestError(f"{folder / vocabulary_name} is not a BPE vocabulary: {error}") from error
    try:
        # Only "\n" ends a line: other characters that str.splitlines knows may be part of a token.
        lines = [line.rstrip("\r") for line in files[merges_name].decode().split("\n")]
        pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        merges = [(left, right) for left, right in pairs]
        check_vocabulary(ids, merges)
        backend = tokenizers.Tokenizer(models.BPE(ids, merges))
    except Exception as error:  # ours (ValueError) and the library's plain Exceptions
        raise RequestError(f"{folder / merges_name} does not fit {vocabulary_name}: {error}") from error
    backend.pre_tokenizer = pre_tokenizer("gpt2")
    backend.decoder = decoders.ByteLevel()
    made = {left + right for left, right in merges}
    special = sorted((token for token in ids if len(token) > 1 and token not in made), key=ids.__getitem__)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return HuggingFaceTokenizer(backend, native_files=files)


def read_bytes(path: Path) -> bytes:
    """Content of a file. RequestError: it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error
