"""Looks at prepared data as training will see it: counts for each split, and the first windows as text."""

from pathlib import Path
from typing import Any

from minigpt.config import DataConfig
from minigpt.data.dataset import TokenDataset
from minigpt.data.download import Progress
from minigpt.data.order import WindowOrder
from minigpt.data.prepare import prepare
from minigpt.tokenizer import Tokenizer


def describe(
    data: DataConfig,
    tokenizer: Tokenizer,
    cache: Path | None = None,
    *,
    context_length: int = 64,
    seed: int = 0,
    windows: int = 3,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """What `minigpt data show` prints, as JSON.

    `splits` has documents, tokens, bytes, bytes_per_token and windows_per_epoch of each split; `windows` the first
    training windows in the order of `seed`: epoch, start, ids, text, and the text of each token (`pieces`). Raises as
    `prepare` does, and RequestError for training text shorter than a window.
    """
    prepared = prepare(data, tokenizer, cache=cache, on_progress=on_progress)
    order = WindowOrder(len(prepared.train), context_length, seed)
    splits = {"train": _summary(prepared.train, tokenizer), "val": None}
    splits["train"]["windows_per_epoch"] = order.windows_per_epoch  # type: ignore[index]
    if prepared.val is not None:
        splits["val"] = _summary(prepared.val, tokenizer)
    shown = []
    for index in range(min(windows, order.windows_per_epoch)):
        epoch, start = order.window(index)
        ids = [int(i) for i in prepared.train.tokens(start, start + context_length + 1)]
        pieces = [tokenizer.decode([i]) for i in ids]
        shown.append({"epoch": epoch, "start": start, "ids": ids, "text": tokenizer.decode(ids), "pieces": pieces})
    return {
        "fingerprint": prepared.fingerprint,
        "context_length": context_length,
        "tokenizer": {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint},
        "splits": splits,
        "windows": shown,
    }


def _summary(dataset: TokenDataset, tokenizer: Tokenizer) -> dict[str, Any]:
    n_bytes = int(dataset.count_ids() @ tokenizer.byte_lengths())
    return {
        "documents": dataset.n_documents,
        "tokens": len(dataset),
        "bytes": n_bytes,
        "bytes_per_token": n_bytes / len(dataset),
    }
