"""The first rows of training, token by token: what each stands for, which document it belongs to, what is predicted."""

import codecs
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from minigpt.data.rows.masks import IGNORED, PADDING, Row
from minigpt.tokenizer import Tokenizer


class Rows(Protocol):
    """What gives the rows of a run, prepared or streamed."""

    names: tuple[str, ...]
    """Sources of a mixture; () where there is none."""

    def row(self, index: int) -> Row:
        """Row number `index`."""

    def source(self, index: int) -> int:
        """Number of the source that it is from."""


def first_windows(rows: Rows, masked: Rows | None, tokenizer: Tokenizer, count: int) -> list[dict[str, Any]]:
    """The first `count` rows as JSON.

    `masked` has the same rows with their documents, whether or not training sees these (None: nobody knows them but by
    the end-of-text tokens). `segments` are runs of positions of one document: its number in the source (None where that
    is not known, or where there is nothing), start, stop, whether it is seen to begin there, whether it is padding.
    `ignored` are the positions whose target takes no part in the loss.
    """
    found = []
    for index in range(count):
        row = rows.row(index)
        documents = None if masked is None else masked.row(index).get("document_ids")
        ids, targets = row["ids"].tolist(), row["targets"].tolist()
        found.append({
            "row": index,
            "source": rows.names[rows.source(index)] if rows.names else None,
            "ids": ids,
            "targets": targets,
            "pieces": token_texts(ids, tokenizer),
            "text": tokenizer.decode(ids),
            "segments": _segments(row["ids"], documents, tokenizer.eot_id),
            "ignored": [at for at, target in enumerate(targets) if target == IGNORED],
        })  # fmt: skip
    return found


def _segments(ids: np.ndarray, documents: np.ndarray | None, eot_id: int | None) -> list[dict[str, Any]]:
    """The documents of a row, or what the end-of-text tokens say of them: each counts to the document after it."""
    known = documents is not None
    if documents is None:
        documents = np.zeros(len(ids), np.int64) if eot_id is None else np.cumsum(ids == eot_id)
    starts = [0, *(np.flatnonzero(np.diff(documents)) + 1).tolist()]
    segments = []
    for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
        number = int(documents[start])
        is_padding = known and number == PADDING
        follows = start > 0 and number == int(documents[start - 1]) + 1  # the next one of a running text
        segments.append({
            "document": number if known and not is_padding else None,
            "start": start,
            "stop": stop,
            "begins": not is_padding and bool(follows or ids[start] == eot_id),
            "padding": is_padding,
        })  # fmt: skip
    return segments


def token_texts(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """The text of each token; together they are the text of all.

    A character whose bytes are spread over several tokens stands with the last of them, and the others are empty.
    """
    names = {number: name for name, number in tokenizer.special_tokens.items()}
    if not tokenizer.exact_bytes:
        return [_after(ids[max(0, at - 1) : at], number, names, tokenizer) for at, number in enumerate(ids)]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    texts: list[str] = []
    for number in ids:
        raw = tokenizer.token_bytes(number)
        if raw is None:
            if texts and (rest := decoder.decode(b"", final=True)):
                texts[-1] += rest
            decoder.reset()
            texts.append(names.get(number, tokenizer.decode([number])))
        else:
            texts.append(decoder.decode(raw))
    if texts:
        texts[-1] += decoder.decode(b"", final=True)
    return texts


def _after(before: Sequence[int], number: int, names: dict[int, str], tokenizer: Tokenizer) -> str:
    """What a token adds to the text of the one before it: at the beginning of a text some leave out a space."""
    if number in names:
        return names[number]
    if not before or before[0] in names:
        return tokenizer.decode([number])
    return tokenizer.decode([*before, number]).removeprefix(tokenizer.decode(before))
