"""Looks at the data of a run as training will see it: sources, lengths of documents, mixture, packing, first rows.

Everything is plain JSON, for programs; `minigpt data show` prints it (cli/show.py) or makes a page of it
(reporting/data_page.py).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minigpt.config import DataConfig
from minigpt.config.pace import Pace
from minigpt.data.dataset import TokenDataset
from minigpt.data.prepared import PreparedSource
from minigpt.data.preparing.prepare import prepare
from minigpt.data.preparing.splits import training_sources
from minigpt.data.reading.download import Progress
from minigpt.data.reading.sources import describe as describe_source
from minigpt.data.rows.mixture import Mixture
from minigpt.data.rows.names import source_names
from minigpt.data.rows.training_rows import TrainingRows, make_rows
from minigpt.data.showing.lengths import Lengths, histogram
from minigpt.data.showing.windows import Rows, first_windows
from minigpt.tokenizer import Tokenizer

SCAN_TOKENS = 1 << 28
"""Lengths and bytes are counted in the first so many tokens of a text (of a store, in its first shard)."""

Steps = Callable[[int | None], int | None]


def describe(
    data: DataConfig,
    tokenizer: Tokenizer,
    cache: Path | None = None,
    *,
    context_length: int = 64,
    seed: int = 0,
    batch_rows: int = 1,
    pace: Pace | None = None,
    steps: Steps | None = None,
    windows: int = 3,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """What `minigpt data show` shows, as JSON.

    `sources`, `validation` and `splits` have counts of documents, tokens and bytes; `lengths` the histogram of the
    documents' lengths; `mixture` its stages; `packing` how documents become rows; `windows` the first rows.
    batch_rows: rows of an optimizer step, the first one if `pace` says that they change. steps: the run's length in
    steps, from the rows of an epoch (None if nobody knows them). Raises as `prepare` and `make_rows` do.
    """
    prepared = prepare(data, tokenizer, cache=cache, on_progress=on_progress)
    order: dict[str, Any] = {"context_length": context_length, "seed": seed, "batch_rows": batch_rows}
    order["first_row"] = None if pace is None else pace.first_row
    masked: Rows | None = None
    if prepared.stream is not None:
        length = None if steps is None else steps(None)
        rows: Any = prepared.stream.rows(**order, max_steps=length)
        sources, total = _streamed(data), _total(length, batch_rows, pace)
    else:
        prepared.require_context(context_length)
        known = make_rows(prepared, data, **order, max_steps=None)
        length = None if steps is None else steps(known.rows_per_epoch)
        rows = make_rows(prepared, data, **order, max_steps=length)
        with_mask = data.model_copy(update={"document_mask": True})
        masked = rows if data.document_mask else make_rows(prepared, with_mask, **order, max_steps=length)
        total = _total(length, batch_rows, pace)
        sources = [
            _source(source, where, rows, number, total, tokenizer)
            for number, (source, where) in enumerate(zip(prepared.sources, _places(data), strict=True))
        ]
    try:
        shown = first_windows(rows, masked, tokenizer, windows)
    finally:
        if prepared.stream is not None:
            rows.close()
    validation = [{"name": name} | _counts(tokens, tokenizer) for name, tokens in prepared.validation]
    return {
        "fingerprint": prepared.fingerprint,
        "context_length": context_length,
        "batch_rows": batch_rows,
        "steps": length,
        "rows": total,
        "streaming": prepared.stream is not None,
        "tokenizer": {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint},
        "sources": sources,
        "validation": validation,
        "splits": {"train": _sum([source["train"] for source in sources]), "val": _sum(validation)},
        "lengths": _lengths(prepared.sources, context_length),
        "mixture": _mixture(rows.mixture, batch_rows, pace),
        "packing": _packing(data, rows),
        "windows": shown,
    }


def _places(data: DataConfig) -> list[list[str]]:
    """Where each prepared source is: all of a concatenation are one."""
    places = [describe_source(source) for source in training_sources(data)]
    return [[place] for place in places] if data.is_mixture else [places]


def _streamed(data: DataConfig) -> list[dict[str, Any]]:
    """What is known of sources that nobody has read to the end."""
    sources = training_sources(data)
    found = zip(source_names(sources), sources, strict=True)
    return [{"name": name, "where": [describe_source(source)], "train": None, "val": None} for name, source in found]


def _source(
    source: PreparedSource, where: list[str], rows: TrainingRows, number: int, total: int | None, tokenizer: Tokenizer
) -> dict[str, Any]:
    """One source; `total` rows are taken in the whole run, if that is known."""
    taken = None if total is None else total if rows.mixture is None else rows.mixture.counts(total)[number]
    per_epoch = rows.sources[number].rows_per_epoch
    return {
        "name": source.name,
        "where": where,
        "train": _counts(source.train, tokenizer),
        "val": None if source.val is None else _counts(source.val, tokenizer),
        "rows_per_epoch": per_epoch,
        "wasted": rows.wasted[number],
        "run": None if taken is None else {"rows": taken, "share": taken / (total or 1), "epochs": taken / per_epoch},
    }


def _scanned(tokens: TokenDataset) -> TokenDataset:
    """The part of it that is read to be counted."""
    return tokens.part(0, min(len(tokens), tokens.stretch or SCAN_TOKENS))


def _counts(tokens: TokenDataset, tokenizer: Tokenizer) -> dict[str, Any]:
    """Documents, tokens and bytes; these are of the first tokens, and `bytes` is None, if not all were scanned."""
    part = _scanned(tokens)
    n_bytes = int(part.count_ids() @ tokenizer.byte_lengths())
    return {
        "documents": tokens.n_documents,
        "tokens": len(tokens),
        "bytes": n_bytes if len(part) == len(tokens) else None,
        "bytes_per_token": n_bytes / len(part),
    }


def _sum(parts: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """The counts of several parts together; None if there are none."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    tokens = sum(part["tokens"] for part in known)
    return {
        "documents": sum(part["documents"] for part in known),
        "tokens": tokens,
        "bytes": None if any(part["bytes"] is None for part in known) else sum(part["bytes"] for part in known),
        "bytes_per_token": sum(part["bytes_per_token"] * part["tokens"] for part in known) / tokens,
    }


def _lengths(sources: Sequence[PreparedSource], context_length: int) -> dict[str, Any] | None:
    found = []
    for source in sources:
        part = _scanned(source.train)
        found.append(Lengths.of(source.name, part, is_whole=len(part) == len(source.train)))
    return histogram(found, context_length) if found else None


def _total(steps: int | None, batch_rows: int, pace: Pace | None) -> int | None:
    """Rows of so many steps."""
    return None if steps is None else steps * batch_rows if pace is None else pace.first_row(steps + 1)


def _mixture(mixture: Mixture | None, batch_rows: int, pace: Pace | None) -> list[dict[str, Any]]:
    """The stages: `counts[i]` of every `block_rows` rows are from `names[i]`, from an optimizer step (1, ...) on."""
    if mixture is None:
        return []
    return [
        {
            "from_step": 1 + (stage.first_row // batch_rows if pace is None else pace.steps_of(stage.first_row)),
            "first_row": stage.first_row,
            "block_rows": stage.block_rows,
            "names": list(mixture.names),
            "weights": list(stage.weights),
            "counts": list(stage.counts),
            "shares": [count / stage.block_rows for count in stage.counts],
        }
        for stage in mixture.stages
    ]


def _packing(data: DataConfig, rows: Any) -> dict[str, Any]:
    """How documents become rows; `wasted` is the share of their positions that hold nothing, over all sources."""
    wasted = None
    if isinstance(rows, TrainingRows):
        weights = [source.rows_per_epoch for source in rows.sources]
        wasted = float(np.average(rows.wasted, weights=weights))
    return {
        "kind": data.packing,
        "document_mask": data.document_mask,
        "restart_positions": data.document_mask and data.restart_positions,
        "rows_per_epoch": rows.rows_per_epoch or None,
        "wasted": wasted,
    }
