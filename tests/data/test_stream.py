"""Streaming: the rows of the text itself, every document once an epoch, and exactly the same rows after a restart."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minigpt.config import DataConfig
from minigpt.data.streaming import documents as stream_documents
from minigpt.data.streaming import source_rows as stream_rows
from minigpt.data.streaming.stream import StreamRows, StreamState, open_stream
from minigpt.tokenizer import Tokenizer

C = 8


def texts(count: int, seed: int = 0, longest: int = 30) -> list[str]:
    """Different documents of `a` ... `j` and spaces, none blank."""
    draw = random.Random(seed)
    return [f"{n}" + "".join(draw.choice("abcdefghij ") for _ in range(draw.randrange(longest))) for n in range(count)]


def jsonl(path: Path, documents: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return str(path)


def data(train: Any, **options: Any) -> DataConfig:
    return DataConfig.model_validate({"train": train, "streaming": True} | options)


def opened(config: DataConfig, tokenizer: Tokenizer, cache: Path, length: int = C, **options: Any) -> StreamRows:
    given = {"context_length": length, "seed": 1, "batch_rows": 4, "max_steps": None} | options
    return open_stream(config, tokenizer, cache).rows(**given)


def take(rows: StreamRows, numbers: Any) -> list[list[int]]:
    """Each row as its ids with the last target."""
    found = []
    for number in numbers:
        row = rows.row(number)
        assert row["ids"].dtype == row["targets"].dtype == np.int64
        assert row["ids"][1:].tolist() == row["targets"][:-1].tolist()
        found.append([*row["ids"].tolist(), int(row["targets"][-1])])
    return found


def windows(ids: list[int], length: int = C) -> list[list[int]]:
    """What is meant by the rows of a text: windows that share one token, the rest left out."""
    return [ids[at : at + length + 1] for at in range(0, len(ids) - length, length)]


def running(documents: list[str], tokenizer: Tokenizer) -> list[int]:
    return [i for text in documents for i in [*tokenizer.encode(text), tokenizer.eot_id]]


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[str, list[str]]:
    documents = texts(40)
    return jsonl(tmp_path / "corpus.jsonl", documents), documents


def test_without_shuffling_the_rows_are_the_text(corpus, bpe, cache) -> None:
    path, documents = corpus
    expected = windows(running(documents, bpe))
    with_rows = opened(data(path, shuffle=False), bpe, cache)
    assert take(with_rows, range(2 * len(expected) + 3)) == expected * 2 + expected[:3]
    with_rows.close()


def test_several_files_and_sources_are_one_text(tmp_path, bpe, cache) -> None:
    one, two, three = texts(5, 1), texts(7, 2), texts(3, 3)
    (tmp_path / "folder").mkdir()
    jsonl(tmp_path / "folder" / "a.jsonl", one)
    (tmp_path / "folder" / "b.txt").write_text("<|endoftext|>".join(two))
    rows = opened(
        data([str(tmp_path / "folder"), {"text": "|".join(three), "separator": "|"}], shuffle=False), bpe, cache
    )
    expected = windows(running(one + two + three, bpe))
    assert take(rows, range(len(expected) + 2)) == expected + expected[:2]
    rows.close()


def test_a_single_plain_text_has_no_end_token(bpe, cache) -> None:
    text = "to be or not to be " * 9
    rows = opened(data({"text": text}, shuffle=False), bpe, cache)
    expected = windows(bpe.encode(text))
    assert take(rows, range(len(expected))) == expected
    rows.close()


def test_a_character_tokenizer(char, cache) -> None:
    text = "to be, or not to be\n" * 3
    rows = opened(data({"text": text}, shuffle=False), char, cache)
    assert take(rows, range(4)) == windows(char.encode(text))[:4]
    rows.close()


def test_documents_are_cut_and_left_out(corpus, bpe, cache) -> None:
    path, documents = corpus
    rows = opened(data(path, shuffle=False, max_document_tokens=9, min_document_tokens=4), bpe, cache)
    encoded = [bpe.encode(text) for text in documents]
    expected = windows([i for ids in encoded if len(ids) >= 4 for i in [*ids[:9], bpe.eot_id]])
    assert take(rows, range(len(expected))) == expected
    rows.close()


def drawn(path: str, bpe: Tokenizer, cache: Path, seed: int = 1, **options: Any) -> list[list[str]]:
    """The documents of three epochs in the order in which they come, but for what is dropped at an epoch's end."""
    rows = opened(data(path, **options), bpe, cache, length=1, seed=seed)
    epochs: list[list[str]] = [[], [], []]
    number = 0
    while (epoch := rows.snapshot().position["sources"][0]["epoch"]) < 3:
        row = rows.row(number)
        epoch = rows.snapshot().position["sources"][0]["epoch"]
        if epoch < 3:
            epochs[epoch] += row["ids"].tolist()
        number += 1
    rows.close()
    return [bpe.decode(ids).split("<|endoftext|>") for ids in epochs]


@pytest.mark.parametrize("buffer", [1, 3, 20, 1000])
def test_every_epoch_has_every_document_once(corpus, bpe, cache, buffer) -> None:
    path, documents = corpus
    first, second, third = drawn(path, bpe, cache, shuffle_buffer=buffer)
    assert sorted(first) == sorted(second) == sorted(third) == sorted(documents)
    assert (first == documents) == (buffer == 1)
    assert (first == second) == (buffer == 1)
    for place, text in enumerate(first):  # none comes before it was read
        assert place >= documents.index(text) - (buffer - 1)


def test_the_order_depends_on_the_seed(corpus, bpe, cache) -> None:
    path, _ = corpus
    orders = [drawn(path, bpe, cache, seed=seed, shuffle_buffer=20) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_a_full_buffer_shuffles_evenly(tmp_path, bpe, cache) -> None:
    """Where the first document lands in 400 epochs of five: 80 times in each place, give or take 4.5 sigma."""
    path = jsonl(tmp_path / "five.jsonl", list("abcde"))
    rows = opened(data(path, shuffle_buffer=5), bpe, cache, length=9)  # an epoch is one row of five pairs
    places = [rows.row(number)["ids"].tolist().index(bpe.encode("a")[0]) // 2 for number in range(400)]
    rows.close()
    assert all(80 - 36 <= places.count(place) <= 80 + 36 for place in range(5))


def test_the_number_of_threads_changes_nothing(corpus, bpe, cache, monkeypatch) -> None:
    monkeypatch.setattr(stream_documents, "BATCH_CHARACTERS", 50)
    found = []
    for workers in (1, 3):
        rows = opened(data(corpus[0], shuffle_buffer=5, workers=workers), bpe, cache)
        found.append(take(rows, range(200)))
        rows.close()
    assert found[0] == found[1]


def test_a_buffer_of_long_documents_is_bounded(corpus, bpe, cache, monkeypatch) -> None:
    monkeypatch.setattr(stream_rows, "BUFFER_TOKENS", 100)
    rows = opened(data(corpus[0]), bpe, cache)
    for number in range(100):
        rows.row(number)
        held = [len(text) for text in rows._sources[0].state.buffer]
        assert sum(held[:-1]) < 100 + 31 and len(held) < 100
    rows.close()


def saved(state: StreamState) -> StreamState:
    """What comes back from the disk: JSON and int32 arrays."""
    position, tensors = json.loads(json.dumps(state.position)), state.tensors()
    assert all(ids.dtype == np.int32 and ids.ndim == 1 for ids in tensors.values())
    return StreamState.saved(position, {name: ids.copy() for name, ids in tensors.items()})


LAYOUTS: dict[str, Any] = {
    "in order": {"shuffle": False},
    "small buffer": {"shuffle_buffer": 3},
    "all in the buffer": {"shuffle_buffer": 1000},
    "held out": {"shuffle_buffer": 7, "val_documents": 5},
    "cut": {"shuffle_buffer": 7, "max_document_tokens": 5, "min_document_tokens": 2},
}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layout=st.sampled_from(list(LAYOUTS)),
    stops=st.lists(st.integers(0, 110), min_size=1, max_size=3).map(sorted),
    length=st.sampled_from([1, 7, 50]),
    left_out=st.sets(st.integers(0, 120), max_size=20),
)
def test_restored_at_any_row(tmp_path_factory, bpe, cache, layout, stops, length, left_out) -> None:
    """Rows that are left out are passed over; stopped once or several times, in whatever file or epoch."""
    folder = tmp_path_factory.mktemp("corpus")
    jsonl(folder / "a.jsonl", texts(11, 1))
    (folder / "b.txt").write_text("<|endoftext|>".join(["  ", *texts(9, 2), " "]))
    config = data([str(folder), {"demo": "stories", "documents": 3}, {"text": "the end"}], **LAYOUTS[layout])
    numbers = [number for number in range(120) if number not in left_out]
    rows = opened(config, bpe, cache, length)
    expected = dict(zip(numbers, take(rows, numbers), strict=True))
    rows.close()
    rows = opened(config, bpe, cache, length)
    begun = 0
    for stop in [*stops, 120]:
        part = [number for number in numbers if begun <= number < stop]
        assert take(rows, part) == [expected[number] for number in part]
        state = saved(rows.snapshot())
        rows.close()
        rows = opened(config, bpe, cache, length)
        rows.restore(state)
        begun = stop
    rows.close()


def test_one_stream_goes_back_and_forth(corpus, bpe, cache) -> None:
    path, _ = corpus
    rows = opened(data(path, shuffle_buffer=5), bpe, cache)
    expected = take(rows, range(30))
    rows.restore(None)
    assert take(rows, range(10)) == expected[:10]
    state = rows.snapshot()
    before = saved(state)
    assert take(rows, range(10, 30)) == expected[10:]
    assert saved(state).position == before.position  # a snapshot is not changed by what comes after it
    assert all((saved(state).tensors()[name] == ids).all() for name, ids in before.tensors().items())
    rows.restore(state)
    assert take(rows, range(10, 30)) == expected[10:]
    with pytest.raises(ValueError, match="row 29 of a stream has gone by"):
        rows.row(29)
    rows.close()


def test_a_snapshot_copies_no_tokens(corpus, bpe, cache) -> None:
    path, _ = corpus
    rows = opened(data(path, shuffle_buffer=20), bpe, cache)
    rows.row(0)
    (source,) = rows._sources
    held = [id(text) for text in source.state.buffer]
    copy = source.state.copy()
    assert [id(text) for text in copy.buffer] == held
    rows.row(40)
    assert [id(text) for text in copy.buffer] == held
    rows.close()


def test_held_out_documents_are_never_trained_on(corpus, bpe, cache) -> None:
    path, documents = corpus
    for epoch in drawn(path, bpe, cache, val_documents=6, shuffle_buffer=4):
        assert sorted(epoch) == sorted(documents[6:])


def mixture(tmp_path: Path, **options: Any) -> DataConfig:
    sources = [
        {"path": jsonl(tmp_path / f"{name}.jsonl", texts(count, count)), "weight": weight}
        for name, count, weight in (("web", 60, 2), ("books", 25, 1), ("code", 9, 1))
    ]
    return data(sources, **options)


def test_a_mixture_has_each_source_in_its_own_order(tmp_path, bpe, cache) -> None:
    rows = opened(mixture(tmp_path, shuffle=False), bpe, cache)
    assert rows.names == ("web", "books", "code")
    by_source: list[list[list[int]]] = [[], [], []]
    for number in range(80):
        by_source[rows.source(number)] += take(rows, [number])
    rows.close()
    assert list(map(len, by_source)) == [40, 20, 20]
    for count, found in zip((60, 25, 9), by_source, strict=True):
        expected = windows(running(texts(count, count), bpe))
        assert found == (expected * 9)[: len(found)]


@pytest.mark.parametrize("stages", [[], [{"from_step": 9, "weights": {"web": 1, "code": 3}}]])
def test_a_mixture_is_restored(tmp_path, bpe, cache, stages) -> None:
    config = mixture(tmp_path, stages=stages, shuffle_buffer=6, val_documents=2)
    rows = opened(config, bpe, cache, max_steps=20)
    expected = take(rows, range(80))
    assert rows.snapshot().epochs[2] > 1 > rows.snapshot().epochs[0]
    rows.close()
    for stop in (0, 1, 17, 33, 64):
        rows = opened(config, bpe, cache, max_steps=20)
        take(rows, range(stop))
        state = saved(rows.snapshot())
        rows.close()
        rows = opened(config, bpe, cache, max_steps=20)
        rows.restore(state)
        assert take(rows, range(stop, 80)) == expected[stop:]
        rows.close()
