"""The cache of tokenized text: found again when nothing changed, never stale, mended when damaged, shared safely."""

import logging
import multiprocessing
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from minigpt.config import DataConfig, RequestError, WorkError
from minigpt.data import prepare
from minigpt.data.preparing import shards as shards_module
from minigpt.data.preparing.encoding import encode_arrays
from minigpt.tokenizer import CharTokenizer, Tokenizer

TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 40


def config(**options) -> DataConfig:
    return DataConfig.model_validate(options)


def text_file(folder: Path, content: str = TEXT, name: str = "a.txt") -> str:
    (folder / name).write_bytes(content.encode())
    return str(folder / name)


def ids_of(dataset) -> list[int]:
    return dataset.tokens(0, len(dataset)).tolist()


def shard_files(cache: Path) -> list[Path]:
    return sorted((cache / "tokens").glob("*/*.tok"))


class Counted:
    """A tokenizer that counts the characters it was given to encode."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.inner, self.characters = tokenizer, 0

    def __getattr__(self, name: str):
        return getattr(self.inner, name)

    def encode_arrays(self, texts: list[str]) -> list[np.ndarray]:
        self.characters += sum(map(len, texts))
        return encode_arrays(self.inner, texts)


def test_a_second_start_reads_the_cache(tmp_path: Path, cache: Path, char: CharTokenizer) -> None:
    counted = Counted(char)
    path = text_file(tmp_path)
    first = prepare(config(train=path), counted, cache=cache)
    assert counted.characters == len(TEXT)
    second = prepare(config(train=path), counted, cache=cache)
    assert counted.characters == len(TEXT)
    assert second.fingerprint == first.fingerprint
    assert ids_of(second.train) == ids_of(first.train)
    # The content counts, not the name: a copy is found too.
    prepare(config(train=text_file(tmp_path, name="b.txt")), counted, cache=cache)
    assert counted.characters == len(TEXT)


def test_nothing_stale_is_used(tmp_path: Path, cache: Path, char: CharTokenizer) -> None:
    path = text_file(tmp_path)
    base = prepare(config(train=path), char, cache=cache)
    changed = TEXT.replace("nobler", "brelon")
    assert len(changed) == len(TEXT)
    seen = {base.fingerprint}

    def check(data: DataConfig, tokenizer: Tokenizer, text: str, cut: int) -> None:
        prepared = prepare(data, tokenizer, cache=cache)
        assert tokenizer.decode(ids_of(prepared.train)) == text[:cut]
        assert prepared.fingerprint not in seen
        seen.add(prepared.fingerprint)

    text_file(tmp_path, changed)  # same name and size, at once
    cut = int(len(TEXT) * 0.9)
    check(config(train=path), char, changed, cut)
    check(config(train=path, val_fraction=0.5), char, changed, int(len(TEXT) * 0.5))
    other = CharTokenizer.from_texts([TEXT + "z!?"])  # the same text, other ids
    check(config(train=path), other, changed, cut)
    os.utime(path, (1, 1))
    again = prepare(config(train=path), char, cache=cache)
    assert again.fingerprint in seen
    text_file(tmp_path)
    assert prepare(config(train=path), char, cache=cache).fingerprint == base.fingerprint


def test_another_validation_text_changes_the_fingerprint_but_not_the_training_shard(
    tmp_path: Path, cache: Path, char: CharTokenizer
) -> None:
    counted = Counted(char)
    one = prepare(config(train=text_file(tmp_path), val={"text": "to be"}), counted, cache=cache)
    before = counted.characters
    two = prepare(config(train=text_file(tmp_path), val={"text": "or not"}), counted, cache=cache)
    assert counted.characters == before + len("or not")
    assert one.fingerprint != two.fingerprint
    assert one.train.fingerprint == two.train.fingerprint


@pytest.mark.parametrize("harm", ["flip", "cut", "missing", "meta", "header"])
def test_a_damaged_cache_is_made_again(
    harm: str, tmp_path: Path, cache: Path, char: CharTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    data = config(train=text_file(tmp_path))
    good = prepare(data, char, cache=cache)
    shard = shard_files(cache)[0]
    raw = shard.read_bytes()
    del good
    if harm == "flip":
        shard.write_bytes(raw[:-100] + bytes([raw[-100] ^ 1]) + raw[-99:])
    elif harm == "cut":
        shard.write_bytes(raw[:-2])
    elif harm == "header":
        shard.write_bytes(b"X" + raw[1:])
    elif harm == "missing":
        shard.unlink()
    else:
        (shard.parent / "meta.json").write_text("{")
    with caplog.at_level(logging.WARNING, logger="minigpt"):
        prepared = prepare(data, char, cache=cache)
    assert char.decode(ids_of(prepared.train) + ids_of(prepared.val)) == TEXT
    (record,) = caplog.records
    assert str(shard.parent) in record.getMessage() and "tokenized again" in record.getMessage()
    caplog.clear()
    prepare(data, char, cache=cache)
    assert not caplog.records


def test_a_failure_leaves_nothing_behind(tmp_path: Path, cache: Path, char: CharTokenizer, monkeypatch) -> None:
    data = config(train=text_file(tmp_path))

    def full(self: object, ids: object, starts: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shards_module.ShardWriter, "append", full)
        with pytest.raises(WorkError, match="no space left on device"):
            prepare(data, char, cache=cache)
    assert [path.name for path in (cache / "tokens").iterdir() if not path.name.endswith(".lock")] == []
    assert len(prepare(data, char, cache=cache).train)


def test_a_file_that_changes_during_the_work_is_not_cached(tmp_path: Path, cache: Path, char: CharTokenizer) -> None:
    class Meddler(Counted):
        def encode_arrays(self, texts: list[str]) -> list[np.ndarray]:
            text_file(tmp_path, TEXT.replace("be", "do"))
            return super().encode_arrays(texts)

    with pytest.raises(RequestError, match=r"a\.txt changed while"):
        prepare(config(train=text_file(tmp_path)), Meddler(char), cache=cache)
    assert shard_files(cache) == []


def _prepare_in_a_process(folder: str, cache: str, barrier, results) -> None:
    tokenizer = Counted(CharTokenizer.from_texts([TEXT]))
    barrier.wait(60)
    prepared = prepare(config(train=os.path.join(folder, "a.txt")), tokenizer, cache=Path(cache))
    results.put((prepared.fingerprint, tokenizer.characters))


def test_two_processes_at_once_tokenize_once(tmp_path: Path, cache: Path) -> None:
    text_file(tmp_path)
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (str(tmp_path), str(cache), barrier, results)
    workers = [context.Process(target=_prepare_in_a_process, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert found[0][0] == found[1][0]
    assert sorted(characters for _, characters in found) == [0, len(TEXT)]


def test_demo_text_is_keyed_by_seed_count_and_grammar(cache: Path, bpe: Tokenizer, monkeypatch) -> None:
    fake = types.ModuleType("minigpt.data.demo")
    fake.GRAMMAR_VERSION = 1
    fake.story = lambda seed, index: f"story {seed} {index} {fake.GRAMMAR_VERSION}"
    fake.dialogue_text = lambda seed, index: f"dialogue {seed} {index}"
    monkeypatch.setitem(sys.modules, "minigpt.data.demo", fake)
    found = set()
    for options in ({"seed": 0}, {"seed": 1}, {"seed": 0, "documents": 11}, {"seed": 0, "demo": "dialogues"}):
        source = {"demo": "stories", "documents": 10} | options
        prepared = prepare(config(train=source), bpe, cache=cache)
        total = prepared.train.n_documents + prepared.val.n_documents
        assert total == source["documents"]
        found.add(prepared.fingerprint)
    fake.GRAMMAR_VERSION = 2
    found.add(prepare(config(train={"demo": "stories", "documents": 10, "seed": 0}), bpe, cache=cache).fingerprint)
    assert len(found) == 5
