"""Files that hold token ids already: nanoGPT's and llm.c's .bin, and .npy. They are used in place, not copied.

A nanoGPT .bin is nothing but ids (uint16, or uint32 if the source says so). llm.c and modded-nanogpt put 256 int32 in
front: magic, version, count. A .npy holds one one-dimensional integer array. None names its tokenizer, so all that can
be checked is that every id is below the vocabulary's size.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from minigpt.config import RequestError
from minigpt.data.dataset import SCAN_TOKENS, Tokens
from minigpt.data.reading.memo import memoised
from minigpt.data.reading.text import reading

SUFFIXES = (".bin", ".npy")
HEADER_INTS = 256  # int32s in front of an llm.c file
LLM_C_FORMATS = {(20240520, 1): "<u2", (20240801, 7): "<u4"}
"""(magic, version) -> type of the ids, from llm.c's dev/data/data_common.py (GPT-2 and Llama 3)."""


def is_token_file(path: Path) -> bool:
    """Whether a file's name says that it holds token ids."""
    return path.suffix.lower() in SUFFIXES


def open_tokens(path: Path, dtype: str | None) -> Tokens:
    """The ids in a file, memory-mapped (N,); `dtype` (uint16 or uint32) is for raw .bin files, None meaning uint16.

    Raises RequestError for a file that cannot be one of the known formats.
    """
    with reading(path):
        size = path.stat().st_size
        if size == 0:
            raise RequestError(f"{path} is empty")
        return _open_npy(path, dtype) if path.suffix.lower() == ".npy" else _open_bin(path, dtype, size)


def _open_npy(path: Path, dtype: str | None) -> Tokens:
    if dtype is not None:
        raise RequestError(f"dtype={dtype!r} has no effect on {path}: a .npy file says itself what it holds")
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError) as error:
        raise RequestError(f"{path} is not a readable .npy file ({str(error).splitlines()[0]})") from None
    if array.ndim != 1 or array.dtype.kind not in "ui":
        found = f"{array.dtype} of shape {array.shape}"
        raise RequestError(f"{path} holds {found}; token ids are a one-dimensional array of integers")
    if array.size == 0:
        raise RequestError(f"{path} holds no tokens")
    return array


def _open_bin(path: Path, dtype: str | None, size: int) -> Tokens:
    header = np.fromfile(path, "<i4", count=min(3, size // 4))
    kind = LLM_C_FORMATS.get((int(header[0]), int(header[1]))) if len(header) == 3 else None
    start = 0
    if kind is not None:
        start, count = 4 * HEADER_INTS, int(header[2])
        if dtype is not None and np.dtype(dtype) != np.dtype(kind):
            raise RequestError(
                f"{path} holds {np.dtype(kind).name} ids by its llm.c header, not {dtype} as the source says"
            )
        expected = start + count * np.dtype(kind).itemsize
        if count < 1 or size != expected:
            raise RequestError(
                f"{path} has {size:,} bytes, but its llm.c header promises {count:,} tokens ({expected:,} bytes)"
            )
    else:
        kind = {"uint16": "<u2", "uint32": "<u4"}[dtype or "uint16"]
        width = np.dtype(kind).itemsize
        if size % width:
            raise RequestError(f"{path} has {size:,} bytes, which is no whole number of {width}-byte token ids")
    return np.memmap(path, np.dtype(kind), mode="r", offset=start)


def scan(path: Path, dtype: str | None, vocab_size: int, cache: Path) -> str:
    """SHA-256 of the ids (as they are on the disk), once every id has been seen to be in 0 ... vocab_size-1.

    The scan is remembered while the file does not change. RequestError names the first id that is too large.
    """
    facts = memoised(path, cache, f"tokens {dtype}", lambda p: _scan(p, dtype))
    if facts["max"] >= vocab_size or facts["min"] < 0:
        ids = open_tokens(path, dtype)
        at = next(a for a in range(0, len(ids), SCAN_TOKENS) if _outside(ids[a : a + SCAN_TOKENS], vocab_size).any())
        at += int(np.argmax(_outside(ids[at : at + SCAN_TOKENS], vocab_size)))
        raise RequestError(
            f"{path} holds id {int(ids[at])} at position {at:,}, but the vocabulary has {vocab_size:,} ids "
            "(0 upwards): the file was made with another tokenizer, or its dtype is not the one given"
        )
    return str(facts["sha256"])


def _scan(path: Path, dtype: str | None) -> dict[str, Any]:
    ids = open_tokens(path, dtype)
    digest, low, high = hashlib.sha256(str(ids.dtype).encode()), 0, 0
    for at in range(0, len(ids), SCAN_TOKENS):
        piece = np.ascontiguousarray(ids[at : at + SCAN_TOKENS])
        digest.update(piece.data)
        low, high = min(low, int(piece.min())), max(high, int(piece.max()))
    return {"sha256": digest.hexdigest(), "min": low, "max": high}


def _outside(ids: Tokens, vocab_size: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return (ids < 0) | (ids >= vocab_size)
