"""tiktoken's encodings from their rank files: lines of a token (base64) and its number.

A rank file has no merges. Those that the `tokenizers` library needs are recovered: two parts merge into a token if the
token's bytes, merged by the ranks below its own, end in these two. A rank file is recognised by its hash, since nothing
in it says how text is split first and which special tokens there are.

Source of addresses, hashes and special tokens: tiktoken_ext/openai_public.py.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models

from minigpt.config import RequestError
from minigpt.tokenizer.byte_level import spelled
from minigpt.tokenizer.gpt2 import read_bytes
from minigpt.tokenizer.huggingface import HuggingFaceTokenizer
from minigpt.tokenizer.patterns import CL100K, REGEXES, split_by

SUFFIX = ".tiktoken"
_URL = "https://openaipublic.blob.core.windows.net/encodings/"
_END = "<|endoftext|>"
_FILL_IN = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")


@dataclass(frozen=True)
class RankFile:
    """What belongs to a rank file: its hash, the rule that splits text, the special tokens."""

    sha256: str
    regex: str
    special_tokens: dict[str, int]


ENCODINGS = {
    "r50k_base": RankFile(
        "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930", REGEXES["gpt2"], {_END: 50256}
    ),
    "p50k_base": RankFile(
        "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069", REGEXES["gpt2"], {_END: 50256}
    ),
    "cl100k_base": RankFile(
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        CL100K,
        {_END: 100257, **dict(zip(_FILL_IN, range(100258, 100261), strict=True)), "<|endofprompt|>": 100276},
    ),
    "o200k_base": RankFile(
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        REGEXES["gpt4o"],
        {_END: 199999, "<|endofprompt|>": 200018},
    ),
}
"""The encodings that have a rank file. `gpt2` is older: it has encoder.json and vocab.bpe."""


def rank_file_url(encoding: str) -> str:
    """Where OpenAI publishes the rank file of an encoding."""
    return f"{_URL}{encoding}{SUFFIX}"


def find_rank_file(path: Path, encoding: str) -> Path:
    """The rank file itself, or the one in a folder: under its own name, or as tiktoken's cache (TIKTOKEN_CACHE_DIR)
    names it. RequestError: the folder has neither."""
    if not path.is_dir():
        return path
    for name in (f"{encoding}{SUFFIX}", hashlib.sha1(rank_file_url(encoding).encode()).hexdigest()):
        if (path / name).is_file():
            return path / name
    raise RequestError(f"folder {path} has no {encoding}{SUFFIX}: name the folder or the file that has it")


def load_ranks(path: Path, encoding: str | None = None) -> HuggingFaceTokenizer:
    """Tokenizer of a rank file, which must be that of `encoding` if given.

    RequestError: it cannot be read, or it is no known rank file, damaged, or that of another encoding.
    """
    content = read_bytes(path)
    sha256 = hashlib.sha256(content).hexdigest()
    found = next((name for name, known in ENCODINGS.items() if known.sha256 == sha256), None)
    if encoding is not None and found not in (None, encoding):
        raise RequestError(f"{path} is the rank file of {found}, not of {encoding}: set tokenizer.encoding={found}")
    if found is None:
        wanted = encoding or f"any of {', '.join(ENCODINGS)}"
        raise RequestError(
            f"{path} has sha256 {sha256[:12]}..., which is not the rank file of {wanted}: it is damaged or another file"
        )
    return from_ranks(_parsed(content, path), ENCODINGS[found], {f"{found}{SUFFIX}": content})


def from_ranks(ranks: dict[bytes, int], about: RankFile, native_files: dict[str, bytes]) -> HuggingFaceTokenizer:
    """The tokenizer of a token's bytes -> id, which is also its rank. RequestError: it is more than merges can say."""
    vocabulary = {spelled(token): rank for token, rank in ranks.items()} | about.special_tokens
    if not all(bytes([byte]) in ranks for byte in range(256)) or len(set(vocabulary.values())) < len(vocabulary):
        raise RequestError("this rank file cannot be used: it lacks a byte, or an id stands for two tokens")
    merges = recovered_merges(ranks)
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [(spelled(left), spelled(right)) for left, right in merges]))
    backend.pre_tokenizer = split_by(about.regex)
    backend.decoder = decoders.ByteLevel()
    names = sorted(about.special_tokens, key=about.special_tokens.__getitem__)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return HuggingFaceTokenizer(backend, native_files=native_files)


def recovered_merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The two parts of every token of more than a byte, by rank. RequestError: a token that no two parts make."""
    merges: list[tuple[bytes, bytes]] = []
    never = max(ranks.values()) + 1
    for token in sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__):
        # part i is token[ends[i]:ends[i + 1]]; pairs[i] is the rank of parts i and i + 1 together
        ends = list(range(len(token) + 1))
        pairs = [ranks.get(token[i : i + 2], never) for i in range(len(token) - 1)]
        while len(pairs) > 1:
            lowest = min(pairs)
            if lowest >= ranks[token]:
                raise RequestError(f"this rank file cannot be used: no merge makes its token {ranks[token]}")
            at = pairs.index(lowest)
            del ends[at + 1], pairs[at]
            for i in range(max(at - 1, 0), min(at + 1, len(pairs))):
                pairs[i] = ranks.get(token[ends[i] : ends[i + 2]], never)
        merges.append((token[: ends[1]], token[ends[1] :]))
    return merges


def _parsed(content: bytes, path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise RequestError(f"{path} line {number} is not a token in base64 and its number") from None
    return ranks
