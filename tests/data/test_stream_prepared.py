"""Without shuffling a stream has the very rows that the prepared text has, whatever the sources and the rules."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minigpt.config import DataConfig, RequestError
from minigpt.data import prepare
from minigpt.data.rows.training_rows import make_rows
from minigpt.data.streaming.stream import open_stream
from minigpt.tokenizer import Tokenizer

DOCUMENT = st.text("ab c\n", max_size=25)
DOCUMENTS = st.lists(DOCUMENT, max_size=6)
SOURCE = st.one_of(
    st.tuples(st.just("lines"), DOCUMENTS),
    st.tuples(st.just("special"), DOCUMENTS),
    st.tuples(st.just("separated"), DOCUMENTS.map(lambda documents: ["a", "b", *documents])),
    st.tuples(st.just("text"), st.lists(DOCUMENT, min_size=1, max_size=1)),
    st.tuples(st.just("folder"), st.lists(DOCUMENT, min_size=1, max_size=4)),
)


def written(folder: Path, number: int, kind: str, documents: list[str]) -> dict[str, Any]:
    """A source of these documents."""
    if kind == "text":
        return {"text": documents[0]}
    path = folder / f"{number}.{'jsonl' if kind == 'lines' else 'txt'}"
    if kind == "lines":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    elif kind == "special":
        path.write_text("<|endoftext|>".join(documents))
    elif kind == "separated":
        path.write_text("|".join(documents))
        return {"path": str(path), "separator": "|"}
    else:
        path = folder / str(number)
        path.mkdir()
        for part, text in enumerate(documents):
            (path / f"{part}.txt").write_text(text)
    return {"path": str(path)}


@pytest.mark.parametrize("kind", ["char", "bpe"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sources=st.lists(SOURCE, min_size=1, max_size=3),
    options=st.fixed_dictionaries(
        {},
        optional={
            "append_eot": st.just(False),
            "max_document_tokens": st.integers(1, 6),
            "min_document_tokens": st.integers(1, 6),
            "document_mask": st.just(True),
            "restart_positions": st.just(False),
        },
    ),
    length=st.integers(1, 9),
    weights=st.none() | st.lists(st.integers(1, 3), min_size=3, max_size=3),
)
def test_the_same_rows(tmp_path_factory, request, kind, sources, options, length, weights) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    folder = tmp_path_factory.mktemp("corpus")
    cache = folder / "cache"
    cache.mkdir()
    train = [written(folder, number, *source) for number, source in enumerate(sources)]
    if weights is not None:
        train = [source | {"weight": weight} for source, weight in zip(train, weights, strict=False)]
    layout: dict[str, Any] = {"context_length": length, "seed": 1, "batch_rows": 3, "max_steps": None}
    tree = {"train": train, "shuffle": False} | options
    prepared: Any
    try:
        data = DataConfig.model_validate(tree | {"val_fraction": 0})
        found = prepare(data, tokenizer, cache=cache)
        found.require_context(length)
        prepared = make_rows(found, data, **layout)
    except RequestError:
        prepared = None
    try:
        stream = open_stream(DataConfig.model_validate(tree | {"streaming": True}), tokenizer, cache)
        stream.require_context(length)
    except RequestError:
        assert prepared is None  # what cannot be prepared cannot be streamed, and the other way round
        return
    assert prepared is not None
    rows = stream.rows(**layout)
    for number in range(30):
        expected, row = prepared.row(number), rows.row(number)
        assert row.keys() == expected.keys()
        for name in ("ids", "targets", "positions"):
            assert np.array_equal(row.get(name, 0), expected.get(name, 0))
        if "document_ids" in row:  # their numbers mean nothing, only which positions share one
            same = [ids["document_ids"][:, None] == ids["document_ids"] for ids in (row, expected)]
            assert np.array_equal(*same)
    rows.close()
