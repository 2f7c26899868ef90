"""What cannot be streamed is said in one sentence, and nobody waits for ever."""

import gc
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from minigpt.config import DataConfig, RequestError, WorkError
from minigpt.data import Prefetcher
from minigpt.data.streaming import documents as stream_documents
from minigpt.data.streaming.stream import StreamRows, open_stream
from minigpt.tokenizer import Tokenizer


def opened(train: Any, tokenizer: Tokenizer, cache: Path, **options: Any) -> StreamRows:
    config = DataConfig.model_validate({"train": train, "streaming": True} | options)
    return open_stream(config, tokenizer, cache).rows(context_length=8, seed=1, batch_rows=4, max_steps=None)


def refused(train: Any, tokenizer: Tokenizer, cache: Path, rows: int = 0, **options: Any) -> str:
    """The sentence of a RequestError, on opening the stream or within its first rows."""
    stream = None
    with pytest.raises(RequestError) as caught:
        stream = opened(train, tokenizer, cache, **options)
        for number in range(rows):
            stream.row(number)
    assert (stream is not None) == bool(rows), "found at another moment"
    if stream is not None:
        stream.close()
    return str(caught.value)


@pytest.fixture
def lines(tmp_path: Path) -> str:
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps({"text": f"line {n} of the file"}) + "\n" for n in range(30)))
    return str(path)


def test_no_text(tmp_path, bpe, cache) -> None:
    (tmp_path / "empty.txt").touch()
    assert "empty.txt" in refused(str(tmp_path / "empty.txt"), bpe, cache)
    (tmp_path / "blank.txt").write_text(" \n\n")
    assert "blank.txt holds no text" in refused(str(tmp_path / "blank.txt"), bpe, cache)
    assert "nowhere.txt" in refused(str(tmp_path / "nowhere.txt"), bpe, cache)
    assert "data.train is not set" in refused(None, bpe, cache)


def test_shorter_than_a_window(bpe, cache) -> None:
    said = refused({"text": "to be"}, bpe, cache, rows=1)
    count = len(bpe.encode("to be"))
    assert f"has {count} tokens to train on, too short for model.context_length=8: at least 9 are needed" in said


def test_everything_held_out(lines, bpe, cache) -> None:
    kept = refused(lines, bpe, cache, rows=1, val_documents=30)
    assert kept.startswith("after the first data.val_documents=30, kept for validation, ")
    assert "has 0 tokens to train on" in kept and kept.endswith("or fewer of these")
    assert "has 0 tokens to train on" in refused(lines, bpe, cache, rows=1, min_document_tokens=1000)


def test_the_first_batch_of_tiny_documents_comes_soon(tmp_path, bpe, cache) -> None:
    """However many of them make up a batch of characters, no more than some thousands are tokenized for a first row."""
    path = tmp_path / "tiny.txt"
    path.write_text("|".join(["a"] * 40_000))
    unit = open_stream(
        DataConfig.model_validate({"train": {"path": str(path), "separator": "|"}, "streaming": True}), bpe, cache
    ).units[0]
    batch = next(stream_documents._read(unit, stream_documents.Place(), threading.Event()))
    assert 1000 < len(batch) < 20_000


def test_what_needs_the_whole_text(lines, tmp_path, bpe, cache) -> None:
    for option in ({"deduplicate": True}, {"packing": "documents"}, {"mixing": "size"}):
        name = next(iter(option))
        said = refused([lines, {"text": "more"}], bpe, cache, **option)
        assert said.startswith(f"data.{name}=") and "the whole text, which data.streaming=true never has" in said
    repeated = [{"path": lines, "repeat": 2}, {"text": "more", "repeat": 1}]
    assert refused(repeated, bpe, cache).startswith("repeat of a source needs the whole text")
    weighed = [{"path": lines, "weight": 2}, {"text": "more", "weight": 1}]
    assert refused(weighed, bpe, cache, max_epochs=3).startswith("data.max_epochs=3.0 needs the whole text")
    stages = [{"from_step": 2, "weights": {"text": 1}}]
    assert "needs a weight for each source" in refused([lines, {"text": "more"}], bpe, cache, stages=stages)
    assert "names 'text-9'" in refused(weighed, bpe, cache, stages=[{"from_step": 2, "weights": {"text-9": 1}}])
    (tmp_path / "ids.bin").write_bytes(bytes(100))
    assert "holds token ids" in refused(str(tmp_path / "ids.bin"), bpe, cache)


def test_a_fault_far_into_the_file(tmp_path, bpe, cache) -> None:
    """It is found while training, behind every row that comes before it."""
    path = tmp_path / "faulty.jsonl"
    path.write_text('{"text": "as it should be"}\n' * 5000 + "{")
    rows = opened(str(path), bpe, cache, shuffle=False)
    with pytest.raises(RequestError, match=r"faulty\.jsonl line 5001 is not JSON"):
        for number in range(10**6):
            rows.row(number)
    assert number * 8 >= 5000 * (len(bpe.encode("as it should be")) + 1) - 8
    with pytest.raises(RuntimeError):
        rows.row(number)
    rows.close()


def test_text_that_the_tokenizer_cannot_spell(tmp_path, char, cache) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "as it should be"}\n{"text": "\\u4e2d"}\n')
    said = refused(str(path), char, cache, rows=9)
    assert "texts.jsonl line 2" in said and "中" in said


OWN = """
import threading
from minigpt.data import DataSource

class Source(DataSource):
    def __init__(self, config):
        pass

class Endless(Source):
    def documents(self):
        while True:
            yield "to be or not to be"

class Failing(Source):
    def documents(self):
        yield "to be or not to be"
        yield "to be or not to be"
        raise KeyError("shelf")

class Hanging(Source):
    gate = threading.Event()

    def documents(self):
        yield "to be or not to be"
        yield "to be or not to be"
        self.gate.wait(20)
        yield "to be or not to be"
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "shelf.py").write_text(OWN)
    return str(tmp_path / "shelf.py")


def test_a_source_without_end(own, bpe, cache) -> None:
    rows = opened(f"{own}:Endless", bpe, cache, shuffle_buffer=9)
    for number in range(500):
        rows.row(number)
    rows.close()


def test_a_source_of_ones_own_that_fails(own, bpe, cache) -> None:
    rows = opened(f"{own}:Failing", bpe, cache)
    with pytest.raises(WorkError, match=r"shelf\.py.*KeyError: 'shelf'"):
        rows.row(0)
    rows.close()


def test_errors_reach_the_loop_through_the_prefetcher(own, bpe, cache) -> None:
    rows = opened(f"{own}:Failing", bpe, cache)
    with Prefetcher(rows.row, start=0) as batches, pytest.raises(WorkError, match="KeyError"):
        batches.next()
    rows.close()


def test_closing_while_a_read_hangs(own, bpe, cache) -> None:
    """Nothing waits for a source that gives nothing more, and the stream can be used again at once."""
    rows = opened(f"{own}:Hanging", bpe, cache, shuffle_buffer=1)
    batches = Prefetcher(rows.row, start=0)
    time.sleep(0.2)
    began = time.monotonic()
    rows.close()
    batches.close(0.1)
    assert time.monotonic() - began < 3
    with pytest.raises(RuntimeError):
        batches.next()


def wait_until_only(threads: set[threading.Thread]) -> None:
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - threads and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not set(threading.enumerate()) - threads


def test_a_stream_that_nobody_holds_ends(lines, bpe, cache) -> None:
    before = set(threading.enumerate())
    opened(lines, bpe, cache).row(0)
    gc.collect()
    wait_until_only(before)


def test_a_thread_that_was_left_behind_reads_no_more(lines, bpe, cache) -> None:
    rows = opened(lines, bpe, cache)
    go_on, said = threading.Event(), []

    def read() -> None:
        rows.row(0)
        go_on.wait(5)
        try:
            rows.row(1)
        except RuntimeError as error:
            said.append(str(error))

    thread = threading.Thread(target=read)
    thread.start()
    while rows.snapshot().position["sources"][0]["next_row"] < 1:
        time.sleep(0.01)
    rows.restore(None)
    first = rows.row(0)["ids"].tolist()
    go_on.set()
    thread.join()
    assert said == ["this stream was closed"]
    rows.restore(None)
    assert rows.row(0)["ids"].tolist() == first
    rows.close()


def test_threads_end(lines, bpe, cache) -> None:
    before = set(threading.enumerate())
    rows = opened(lines, bpe, cache, shuffle_buffer=4)
    for number in range(5):
        rows.row(number)
    rows.restore(rows.snapshot())
    rows.row(7)
    rows.close()
    wait_until_only(before)
    with pytest.raises(RuntimeError, match="closed"):
        rows.row(8)


def test_another_text_is_refused(lines, tmp_path, bpe, char, cache) -> None:
    rows = opened(lines, bpe, cache)
    rows.row(0)
    state = rows.snapshot()
    rows.close()
    same = opened({"path": lines, "name": "other"}, bpe, cache)  # what it is called does not matter
    same.restore(state)
    same.close()
    Path(lines).write_text(Path(lines).read_text() + '{"text": "one more"}\n')
    for other in (opened(lines, bpe, cache), opened(lines, bpe, cache, val_documents=1)):
        with pytest.raises(RequestError, match=r"has read another text than data\.train"):
            other.restore(state)
        other.close()
