"""What `describe` says of the data of a run: counted again by hand, and the rows that training takes."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.config import DataConfig
from minigpt.data import describe, prepare
from minigpt.data.rows.masks import IGNORED
from minigpt.data.rows.training_rows import make_rows
from minigpt.data.showing.lengths import MAX_BINS, bin_edges
from minigpt.data.showing.windows import token_texts
from minigpt.tokenizer import CharTokenizer, Tokenizer

LETTERS = "abcdefghij é\n"
TEXTS = [f"{'abcdefghij'[n % 10]}{'é' * (n % 3)} " * (1 + n % 7) for n in range(40)]


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def letters() -> CharTokenizer:
    """One id a character, and no end-of-text token."""
    return CharTokenizer.from_texts([LETTERS])


@given(st.integers(1, 1 << 40), st.integers(0, 1 << 40))
@settings(max_examples=300, deadline=None)
def test_bins_hold_every_length_and_are_few(shortest: int, more: int) -> None:
    longest = shortest + more
    edges = bin_edges(shortest, longest)
    assert edges == sorted(set(edges)) and edges[0] <= shortest and edges[-1] > longest
    assert len(edges) - 1 <= max(MAX_BINS, longest.bit_length())
    assert edges[1] > shortest and edges[-2] <= longest  # the outermost are not empty
    for power in range(41):
        assert edges[0] >= 1 << power or edges[-1] <= 1 << power or 1 << power in edges


def test_counts_of_documents_tokens_and_bytes(tmp_path: Path, cache: Path, bpe: Tokenizer) -> None:
    path = jsonl(tmp_path / "a.jsonl", TEXTS)
    found = describe(DataConfig.model_validate({"train": str(path), "val_fraction": 0}), bpe, cache, context_length=8)
    lengths = [len(bpe.encode(text)) + 1 for text in TEXTS]
    (source,) = found["sources"]
    assert source["name"] == "a" and source["where"] == [str(path)] and source["val"] is None
    train = {"documents": 40, "tokens": sum(lengths), "bytes": sum(len(text.encode()) for text in TEXTS)}
    assert source["train"] == found["splits"]["train"] == train | {"bytes_per_token": train["bytes"] / train["tokens"]}
    assert found["splits"]["val"] is None and found["validation"] == []
    edges, (of,) = found["lengths"]["edges"], found["lengths"]["sources"]
    assert of["documents"] == np.histogram(lengths, edges)[0].tolist() and sum(of["documents"]) == 40
    assert of["tokens"] == [sum(n for n in lengths if low <= n < high) for low, high in pairwise(edges)]
    assert (of["shortest"], of["longest"], of["median"]) == (min(lengths), max(lengths), np.median(lengths))
    assert of["longer_than_context"] == sum(length > 8 for length in lengths)
    json.dumps(found)


def test_of_a_long_text_the_beginning_is_counted(
    tmp_path: Path, cache: Path, letters: CharTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minigpt.data.showing.show.SCAN_TOKENS", 100)
    path = jsonl(tmp_path / "a.jsonl", ["aaaaa"] * 30 + ["éé"] * 30)
    found = describe(DataConfig.model_validate({"train": str(path), "val_fraction": 0}), letters, cache)
    train = found["splits"]["train"]
    assert (train["documents"], train["tokens"], train["bytes"], train["bytes_per_token"]) == (60, 210, None, 1.0)
    assert found["lengths"]["sources"][0]["longest"] == 5


def windows(data: dict[str, Any], tokenizer: Tokenizer, cache: Path, count: int = 12) -> list[dict[str, Any]]:
    config = DataConfig.model_validate(data)
    found = describe(config, tokenizer, cache, context_length=16, seed=5, batch_rows=4, windows=count)
    rows = make_rows(
        prepare(config, tokenizer, cache=cache), config, context_length=16, seed=5, batch_rows=4, max_steps=None
    )
    for number, window in enumerate(found["windows"]):
        row = rows.row(number)
        assert window["ids"] == row["ids"].tolist() and window["targets"] == row["targets"].tolist()
        assert window["row"] == number and "".join(window["pieces"]) == window["text"]
        assert window["ignored"] == np.flatnonzero(row["targets"] == IGNORED).tolist()
        assert [segment["stop"] for segment in window["segments"]][-1] == 16
        assert all(a["stop"] == b["start"] for a, b in pairwise(window["segments"]))
    return found["windows"]


@pytest.mark.parametrize("packing", ["contiguous", "documents"])
@pytest.mark.parametrize("mask", [True, False])
def test_windows_are_those_of_training(
    packing: str, mask: bool, tmp_path: Path, cache: Path, bpe: Tokenizer, letters: CharTokenizer
) -> None:
    path = jsonl(tmp_path / "a.jsonl", TEXTS)
    data = {"train": str(path), "val_fraction": 0, "packing": packing, "document_mask": mask}
    for tokenizer in (bpe, letters):
        for window in windows(data, tokenizer, cache):
            for segment in window["segments"]:
                # The text of each segment is part of the document that it is said to be.
                start, stop = segment["start"], segment["stop"]
                if segment["padding"]:
                    assert packing == "documents" and set(range(start, stop)) <= set(window["ignored"])
                    continue
                text = tokenizer.decode(window["ids"][start:stop], skip_special=True).strip("\ufffd")  # a cut é
                document = TEXTS[segment["document"]]
                assert text in document and (not segment["begins"] or document.startswith(text))


def test_a_mixture_by_stage(tmp_path: Path, cache: Path, bpe: Tokenizer) -> None:
    paths = {name: jsonl(tmp_path / f"{name}.jsonl", TEXTS) for name in "ab"}
    data = {
        "train": [{"path": str(path), "weight": 1 + 2 * (name == "b")} for name, path in paths.items()],
        "stages": [{"from_step": 11, "weights": {"a": 1}}],
    }
    config = DataConfig.model_validate(data)
    found = describe(config, bpe, cache, context_length=8, batch_rows=4, steps=lambda rows: 20, windows=8)
    first, second = found["mixture"]
    assert (first["from_step"], first["shares"], first["block_rows"]) == (1, [0.25, 0.75], 4)
    assert (second["from_step"], second["first_row"], second["shares"]) == (11, 40, [1.0, 0.0])
    assert [source["run"]["rows"] for source in found["sources"]] == [10 + 40, 30]
    assert [source["run"]["share"] for source in found["sources"]] == [50 / 80, 30 / 80]
    assert [window["source"] for window in found["windows"]].count("a") == 2
    assert found["steps"] == 20 and found["packing"]["rows_per_epoch"] > 0
    names = [part["name"] for part in found["validation"]]
    assert names == ["a", "b"] and found["splits"]["val"]["documents"] == sum(
        part["documents"] for part in found["validation"]
    )


def test_epochs_are_turned_into_steps(tmp_path: Path, cache: Path, letters: CharTokenizer) -> None:
    config = DataConfig.model_validate({"train": {"text": "abc" * 100}, "val_fraction": 0})
    seen = []
    found = describe(config, letters, cache, context_length=9, steps=lambda rows: seen.append(rows) or 66)
    assert seen == [found["packing"]["rows_per_epoch"]] == [32]
    assert found["sources"][0]["run"] == {"rows": 66, "share": 1.0, "epochs": 66 / 32}


def test_a_stream_shows_its_beginning(tmp_path: Path, cache: Path, bpe: Tokenizer) -> None:
    path = jsonl(tmp_path / "a.jsonl", TEXTS)
    data = {"train": str(path), "streaming": True, "shuffle": False, "val_documents": 2}
    found = describe(DataConfig.model_validate(data), bpe, cache, context_length=8, steps=lambda rows: 10)
    assert found["streaming"] and found["lengths"] is None and found["splits"]["train"] is None
    assert found["sources"] == [{"name": "a", "where": [str(path)], "train": None, "val": None}]
    assert found["validation"][0]["documents"] == 2
    ids = [number for text in TEXTS[2:] for number in [*bpe.encode(text), bpe.eot_id]]
    assert [window["ids"] for window in found["windows"]] == [ids[at : at + 8] for at in (0, 8, 16)]
    for window in found["windows"]:  # documents are told by the end-of-text tokens
        inside = [segment["start"] for segment in window["segments"][1:]]
        assert inside == [at for at, number in enumerate(window["ids"]) if number == bpe.eot_id and at]


@given(st.lists(st.integers(0, 499), max_size=12))
@settings(max_examples=200, deadline=None)
def test_texts_of_tokens_make_the_text(bpe: Tokenizer, ids: list[int]) -> None:
    ids = [number % bpe.vocab_size for number in ids]
    assert "".join(token_texts(ids, bpe)) == bpe.decode(ids)


def test_characters_of_several_tokens(bpe: Tokenizer) -> None:
    ids = bpe.encode("a日b")
    texts = token_texts(ids, bpe)
    assert len(texts) == 5 and texts == ["a", "", "", "日", "b"]


def test_texts_of_sentencepiece(test_data) -> None:
    pytest.importorskip("sentencepiece")
    from minigpt.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(test_data("tokenizer_vectors/sentencepiece/test_model.model"))
    text = "Yesterday I saw a girl. こんにちは"
    ids = tokenizer.encode(text)
    texts = token_texts(ids, tokenizer)
    assert len(texts) == len(ids) and "".join(texts) == tokenizer.decode(ids)
