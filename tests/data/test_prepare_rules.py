"""Rules for documents (length, duplicates), mixtures, folders for others, and what goes wrong on the way."""

import contextlib
import errno
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

from minigpt.config import DataConfig, RequestError, WorkError
from minigpt.data import prepare, prepare_part, write_folders
from minigpt.data.preparing import blocks, duplicates, long_text, unit
from minigpt.data.reading import text
from minigpt.data.reading.sources import Document
from minigpt.tokenizer import CharTokenizer, Tokenizer

LONG = "to be or not to be that is the question "


def config(**options) -> DataConfig:
    return DataConfig.model_validate({"val_fraction": 0} | options)


def rows(folder: Path, texts: list[str], name: str = "rows.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(folder / name)


def ids_of(dataset) -> list[int]:
    return dataset.tokens(0, len(dataset)).tolist()


def left_behind(cache: Path) -> list[str]:
    return [path.name for path in (cache / "tokens").iterdir() if not path.name.endswith(".lock")]


# --- rules for documents


@pytest.mark.parametrize("pieces", [16, 1 << 18])
@pytest.mark.parametrize(("longest", "shortest"), [(7, None), (None, 5), (7, 5), (1, 1), (3, 100)])
def test_length(
    longest: int | None, shortest: int | None, pieces: int, tmp_path: Path, cache: Path, bpe: Tokenizer, monkeypatch
) -> None:
    monkeypatch.setattr(unit, "BATCH_CHARACTERS", pieces)  # long texts come in pieces where the tokenizer allows it
    texts = ["to", "to be, or not", LONG * 5, "x", "that is", LONG * 30]
    data = config(train=rows(tmp_path, texts), max_document_tokens=longest, min_document_tokens=shortest)
    for tokenizer in (bpe, CharTokenizer.from_texts(texts)):
        eot = [] if tokenizer.eot_id is None else [tokenizer.eot_id]
        encoded = [tokenizer.encode(text) for text in texts]
        kept = [[*ids[:longest], *eot] for ids in encoded if len(ids) >= (shortest or 0)]
        train = prepare(data, tokenizer, cache=cache).train
        assert ids_of(train) == [i for ids in kept for i in ids]
        assert train.document_offsets.tolist() == [sum(map(len, kept[:n])) for n in range(len(kept))]


def test_a_rule_that_leaves_nothing(tmp_path: Path, cache: Path, bpe: Tokenizer) -> None:
    data = config(train=rows(tmp_path, ["to be", "or not"]), min_document_tokens=50)
    with pytest.raises(RequestError, match=r"data\.min_document_tokens=50 leaves out every document of .*rows\.jsonl"):
        prepare(data, bpe, cache=cache)
    assert left_behind(cache) == []


def test_the_split_counts_what_was_kept(tmp_path: Path, cache: Path, bpe: Tokenizer) -> None:
    texts = ["to be or not to be", "x", "that is the question", "x"]  # 18 and 20 characters are kept
    train = rows(tmp_path, texts)
    for fraction, kept in [(0.6, "to be or not to be"), (0.1, "to be or not to be" + "that is the question"[:16])]:
        prepared = prepare(config(train=train, val_fraction=fraction, min_document_tokens=3), bpe, cache=cache)
        assert bpe.decode(ids_of(prepared.train), skip_special=True) == kept
        together = bpe.decode(ids_of(prepared.train) + ids_of(prepared.val), skip_special=True)
        assert together == "to be or not to be" + "that is the question"


@pytest.mark.parametrize("run", [1, 3, 1 << 18])
def test_copies_are_left_out(run: int, tmp_path: Path, cache: Path, bpe: Tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(duplicates, "RUN", run)
    monkeypatch.setattr(duplicates, "MERGE_AT", 3)
    monkeypatch.setattr(duplicates, "GROUP", 5)
    monkeypatch.setattr(blocks, "BLOCK_CHARACTERS", 60)
    draw = random.Random(0)
    texts = [f"to be {draw.randrange(40)}" for _ in range(150)]
    one, other = rows(tmp_path, texts[:90]), rows(tmp_path, [*texts[90:], "to be 1 ", "To be 1"], "more.jsonl")
    prepared = prepare(config(train=[one, other], deduplicate=True), bpe, cache=cache)
    unique = dict.fromkeys([*texts, "to be 1 ", "To be 1"])
    assert ids_of(prepared.train) == [i for text in unique for i in [*bpe.encode(text), bpe.eot_id]]
    for index in range(3):  # every part knows what is a copy of something that another part has
        prepare_part(config(train=[one, other], deduplicate=True), bpe, unit.Part(index, 3), cache=tmp_path / "parts")
    merged = prepare(config(train=[one, other], deduplicate=True), bpe, cache=tmp_path / "parts")
    assert merged.fingerprint == prepared.fingerprint


def test_few_long_texts_are_held_to_find_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "GROUP_CHARACTERS", 10)
    taken: list[int] = []

    def documents():
        for number in range(9):
            taken.append(number)
            yield number, Document("abcd"[number % 2 :] * 2, "here", is_stream=False)

    found = duplicates.first_copies(documents(), tmp_path)
    assert next(found)[0] == 0
    assert taken == [0, 1]
    assert [number for number, _ in found] == [1]


def test_the_set_of_hashes_is_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "RUN", 50)
    texts = [str(random.Random(n).randrange(1500)) for n in range(4000)]
    documents = [(n, Document(text, "", False)) for n, text in enumerate(texts)]
    found = list(duplicates.first_copies(iter(documents), tmp_path))
    assert [document.text for _, document in found] == list(dict.fromkeys(texts))
    assert list(tmp_path.iterdir()) == []


# --- mixtures and validation


def test_each_source_of_a_mixture_has_its_own_end(tmp_path: Path, cache: Path, bpe: Tokenizer) -> None:
    one, other = rows(tmp_path, ["to be"] * 10, "one.jsonl"), rows(tmp_path, ["or not"] * 30, "other.jsonl")
    data = config(train=[{"path": one, "weight": 1}, {"path": other, "weight": 3, "name": "second"}], val_fraction=0.2)
    prepared = prepare(data, bpe, cache=cache)
    assert [(s.name, s.weight, s.train.n_documents, s.val.n_documents) for s in prepared.sources if s.val] == [
        ("one", 1.0, 8, 2), ("second", 3.0, 24, 6)
    ]  # fmt: skip
    assert [(name, tokens.n_documents) for name, tokens in prepared.validation] == [("one", 2), ("second", 6)]
    assert len(prepared.train) == sum(len(source.train) for source in prepared.sources)
    sizes = prepare(config(train=[one, other], mixing="size"), bpe, cache=cache)
    assert [s.weight for s in sizes.sources] == [len(s.train) for s in sizes.sources]
    repeats = prepare(config(train=[{"path": one, "repeat": 2}, {"path": other, "repeat": 0.5}]), bpe, cache=cache)
    assert [s.weight for s in repeats.sources] == [
        len(s.train) * x for s, x in zip(sizes.sources, (2, 0.5), strict=True)
    ]
    together = prepare(config(train=[one, other]), bpe, cache=cache)
    assert [(s.name, s.weight, len(s.train)) for s in together.sources] == [
        ("train", 1.0, len(prepared.train) + len(prepared.val))
    ]


def test_each_source_of_validation_text_is_a_set(tmp_path: Path, cache: Path, bpe: Tokenizer) -> None:
    data = config(train={"text": "to be"}, val=[{"text": "or not", "name": "easy"}, {"text": "that is"}])
    prepared = prepare(data, bpe, cache=cache)
    assert [(name, ids_of(tokens)) for name, tokens in prepared.validation] == [
        ("easy", bpe.encode("or not")), ("text", bpe.encode("that is"))
    ]  # fmt: skip
    assert ids_of(prepared.val) == bpe.encode("or not") + bpe.encode("that is")
    assert prepared.sources[0].val is None


def test_the_size_of_the_shards_does_not_matter(tmp_path: Path, cache: Path, bpe: Tokenizer) -> None:
    path = rows(tmp_path, [LONG * 10] * 50)
    one, other = (
        prepare(config(train=path, val_fraction=0.3, shard_tokens=size), bpe, cache=cache) for size in (1024, 1 << 20)
    )
    assert one.fingerprint == other.fingerprint
    assert ids_of(one.train) == ids_of(other.train)


# --- folders for others


def test_a_folder_for_others(tmp_path: Path, cache: Path, bpe: Tokenizer) -> None:
    data = config(train=rows(tmp_path, [LONG * 10] * 50), val_fraction=0.3)
    prepared = prepare(data, bpe, cache=cache)
    (folder,) = write_folders(prepared, bpe, tmp_path / "out", 1024)
    assert len(list(folder.glob("tokens-*.tok"))) > 1 and (folder / "tokenizer" / "tokenizer.json").is_file()
    again = prepare(config(train={"shards": str(folder)}, val_fraction=0.3), bpe, cache=tmp_path / "new")
    assert again.fingerprint == prepared.fingerprint
    assert ids_of(again.train) == ids_of(prepared.train) and ids_of(again.val) == ids_of(prepared.val)
    assert again.train.document_offsets.tolist() == prepared.train.document_offsets.tolist()
    with pytest.raises(RequestError, match="is not empty: give --out a new folder"):
        write_folders(prepared, bpe, folder, 1024)
    with pytest.raises(RequestError, match="made with another tokenizer"):
        prepare(config(train={"shards": str(folder)}), CharTokenizer.from_texts([LONG]), cache=tmp_path / "new")


def test_folders_of_a_mixture(tmp_path: Path, cache: Path, bpe: Tokenizer) -> None:
    sources = [{"path": rows(tmp_path, ["to be"] * 10, f"{n}.jsonl"), "weight": 1, "name": n} for n in ("a", "b")]
    prepared = prepare(config(train=sources, val={"text": "or not", "name": "a"}), bpe, cache=cache)
    folders = write_folders(prepared, bpe, tmp_path / "out", 1024)
    assert [folder.name for folder in folders] == ["a", "b", "val-a"]
    shards = [{"shards": str(tmp_path / "out" / name), "weight": 1} for name in ("a", "b")]
    again = prepare(config(train=shards, val={"shards": str(folders[2])}), bpe, cache=tmp_path / "new")
    assert again.fingerprint == prepared.fingerprint
    assert [name for name, _ in again.validation] == ["val-a"]


# --- what goes wrong


def test_two_folders_of_one_name_are_refused(tmp_path: Path, cache: Path, bpe: Tokenizer) -> None:
    train = [{"text": LONG, "name": "a", "weight": 1}, {"text": LONG * 2, "name": "val-b", "weight": 1}]
    prepared = prepare(config(train=train, val={"text": "to be", "name": "b"}), bpe, cache=cache)
    with pytest.raises(RequestError, match="val-b would hold both a source and the validation set b"):
        write_folders(prepared, bpe, tmp_path / "out", 1024)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [".", "..", ".hidden", "a/b"])
def test_a_name_is_the_name_of_a_folder_too(name: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        config(train={"text": LONG, "name": name})


class Full:
    """A disk that is full after `room` bytes of block files."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __call__(self, writer: blocks.BlockWriter, values: np.ndarray) -> None:
        self.room -= values.nbytes
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        writer._file.write(values.tobytes())


@pytest.mark.parametrize("room", [0, 500, 2000])
def test_a_full_disk(room: int, tmp_path: Path, cache: Path, bpe: Tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_CHARACTERS", 300)
    data = config(train=rows(tmp_path, [LONG] * 100))
    full = Full(room)
    with monkeypatch.context() as patch:
        patch.setattr(blocks.BlockWriter, "_write", lambda self, values, crc=0: full(self, values))
        with pytest.raises(WorkError, match=r"could not write .*: no space left on device$"):
            prepare(data, bpe, cache=cache)
    assert left_behind(cache) == []
    assert prepare(data, bpe, cache=cache).train.n_documents == 100


def test_bad_text_far_down_leaves_nothing(tmp_path: Path, cache: Path, bpe: Tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_CHARACTERS", 300)
    path = Path(rows(tmp_path, [LONG] * 100))
    path.write_bytes(path.read_bytes() + b'{"text": 5}\n')
    for attempt in (prepare, lambda *a, **k: prepare_part(*a, unit.Part(0, 2), **k)):
        with pytest.raises(RequestError, match=r"rows\.jsonl line 101: field 'text'"):
            attempt(config(train=str(path)), bpe, cache=cache)
        assert left_behind(cache) == []


class TooLarge:
    """A tokenizer that breaks its promise."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.inner = tokenizer

    def __getattr__(self, name: str):
        return getattr(self.inner, name)

    def encode_arrays(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array([self.inner.vocab_size], np.uint32) for _ in texts]


def test_an_id_outside_the_vocabulary_is_not_written(cache: Path, bpe: Tokenizer) -> None:
    with pytest.raises(ValueError, match="outside its vocabulary of 300"):
        prepare(config(train={"text": "to be"}), TooLarge(bpe), cache=cache)
    with contextlib.suppress(FileNotFoundError):
        assert not list(cache.glob("tokens/*/*.tok"))


def test_a_file_that_becomes_shorter_between_two_starts(tmp_path: Path, cache: Path, bpe: Tokenizer) -> None:
    """Blocks are kept under the hash of the content: those of another content are never taken for its own."""
    path = Path(rows(tmp_path, [LONG] * 60))
    prepare_part(config(train=str(path)), bpe, unit.Part(0, 1), cache=cache)
    rows(tmp_path, ["to be"] * 3)
    assert prepare(config(train=str(path)), bpe, cache=cache).train.n_documents == 3


def test_part_of_token_files_is_nothing(tmp_path: Path, cache: Path, bpe: Tokenizer) -> None:
    np.array(bpe.encode(LONG), "<u2").tofile(tmp_path / "a.bin")
    assert prepare_part(config(train=str(tmp_path / "a.bin")), bpe, unit.Part(0, 1), cache=cache) == 0


def test_the_first_documents_are_held_out_of_a_stream(tmp_path: Path, cache: Path, bpe: Tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_CHARACTERS", 30)
    texts = [f"to be {n}" for n in range(40)]
    data = config(train=rows(tmp_path, texts), streaming=True, val_documents=11)
    prepared = prepare(data, bpe, cache=cache)
    assert prepared.sources == () and prepared.stream is not None
    ((_, tokens),) = prepared.validation
    assert ids_of(tokens) == [i for text in texts[:11] for i in [*bpe.encode(text), bpe.eot_id]]
    with pytest.raises(RequestError, match=r"data\.streaming=true"):
        _ = prepared.train


@pytest.mark.parametrize("fraction", [0, 0.1, 0.37])
@pytest.mark.parametrize(
    "content", [LONG * 300, "x" * 5000, LONG * 20 + "<|endoftext|>" + LONG, " \n" * 9, "é \n" * 999]
)
def test_long_texts_are_never_held_and_give_the_same(
    content: str, fraction: float, tmp_path: Path, cache: Path, bpe: Tokenizer, monkeypatch
) -> None:
    (tmp_path / "a.txt").write_text(content, encoding="utf-8", newline="")
    data = config(train=str(tmp_path / "a.txt"), val_fraction=fraction)
    monkeypatch.setattr(unit, "BATCH_CHARACTERS", 64)
    monkeypatch.setattr(text, "CHUNK_BYTES", 100)
    for number, tokenizer in enumerate((bpe, CharTokenizer.from_texts([content]))):
        found = []
        for long_bytes in (1, 1 << 40):
            monkeypatch.setattr(long_text, "LONG_BYTES", long_bytes)
            try:
                prepared = prepare(data, tokenizer, cache=tmp_path / f"{number}-{long_bytes}")
            except RequestError as error:
                found.append(str(error))
            else:
                found.append(prepared.fingerprint)
        assert found[0] == found[1]


@pytest.mark.parametrize(
    "rule", [{"max_document_tokens": 5}, {"min_document_tokens": 2}, {"deduplicate": True}, {"append_eot": False}]
)
def test_rules_for_text_are_refused_for_token_ids(rule, tmp_path: Path, cache: Path, bpe: Tokenizer) -> None:
    np.save(tmp_path / "ids.npy", np.array(bpe.encode(LONG * 9), np.uint16))
    data = config(train=str(tmp_path / "ids.npy"))
    assert len(prepare(data, bpe, cache=cache).train) == len(bpe.encode(LONG * 9))
    with pytest.raises(RequestError, match=rf"data\.{next(iter(rule))}=.* has no effect on .*ids\.npy"):
        prepare(data.model_copy(update=rule), bpe, cache=cache)
