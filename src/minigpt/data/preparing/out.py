"""Writes prepared data as a folder that can be carried to other machines, or put into a store: see preparing/folder.py.

A concatenation becomes one folder, with `train` and `val` in it. Of a mixture each source becomes a folder of its own
within it, so that it can be weighed anew; validation sets of their own are in val-NAME.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minigpt.config import RequestError
from minigpt.data.dataset import SCAN_TOKENS, TokenDataset
from minigpt.data.prepared import PreparedData
from minigpt.data.preparing.merge import FolderWriter
from minigpt.storage.atomic import atomic_folder
from minigpt.tokenizer import Tokenizer


def require_new_folder(folder: Path) -> None:
    """RequestError if there is something at this place already."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise RequestError(f"{folder} is not empty: give --out a new folder")


def write_folders(prepared: PreparedData, tokenizer: Tokenizer, folder: Path, shard_tokens: int) -> list[Path]:
    """Write everything that was prepared into a new folder, whole or not at all; the folders with a meta.json in it.

    RequestError if the folder is not new, or two names are one; WorkError for a full disk.
    """
    require_new_folder(folder)
    own_ends = {source.name for source in prepared.sources if source.val is not None}
    contents: dict[str, dict[str, TokenDataset | None]] = {}
    if len(prepared.sources) == 1:
        contents["."] = {"train": prepared.train, "val": prepared.val}
    else:
        for source in prepared.sources:
            contents[source.name] = {"train": source.train, "val": source.val}
        for name, tokens in prepared.validation:
            if name in own_ends:
                continue
            if (place := f"val-{name}") in contents:
                raise RequestError(
                    f"{place} would hold both a source and the validation set {name}: rename one of them"
                )
            contents[place] = {"train": tokens, "val": None}
    with atomic_folder(folder, replace=folder.exists()) as unfinished:
        for name, splits in contents.items():
            inside = unfinished / name
            inside.mkdir(exist_ok=True)
            _write(inside, splits, tokenizer, shard_tokens)
    return [folder / name for name in contents]


def _write(folder: Path, splits: Mapping[str, TokenDataset | None], tokenizer: Tokenizer, shard_tokens: int) -> None:
    """One folder with its tokenizer. A single split is called `all`."""
    given = {name: tokens for name, tokens in splits.items() if tokens is not None}
    if len(given) == 1:
        given = {"all": next(iter(given.values()))}
    writer = FolderWriter(folder, tokenizer, shard_tokens)
    try:
        for name, tokens in given.items():
            for ids, starts in _chunks(tokens):
                writer.write(name, ids, starts)
        writer.close()
    finally:
        writer.abort()
    (folder / "tokenizer").mkdir()
    tokenizer.save(folder / "tokenizer")


def _chunks(tokens: TokenDataset) -> Iterator[tuple[NDArray[np.generic], NDArray[np.int64]]]:
    """The ids, a piece at a time, each with the places in it at which documents begin."""
    offsets = tokens.document_offsets
    for at in range(0, len(tokens), SCAN_TOKENS):
        end = min(len(tokens), at + SCAN_TOKENS)
        low, high = np.searchsorted(offsets, [at, end])
        yield tokens.tokens(at, end), offsets[low:high] - at
