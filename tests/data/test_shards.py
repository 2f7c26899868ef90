"""Token shards and token files: what is written comes back, and nothing else is taken for it."""

import json
import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.config import RequestError
from minigpt.data.dataset import TokenDataset, token_dtype
from minigpt.data.preparing.shards import HEADER_BYTES, CorruptShardError, ShardWriter, TokenShard
from minigpt.data.preparing.token_files import open_tokens, scan
from minigpt.data.reading import memo


def write_shards(folder: Path, documents: list[list[int]], vocab_size: int, shard_tokens: int, piece: int = 5):
    folder.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(folder, vocab_size, "fp", shard_tokens)
    everything = np.array([i for ids in documents for i in ids], np.uint32)
    starts = np.array([sum(map(len, documents[:k])) for k, ids in enumerate(documents) if ids], np.int64)
    for at in range(0, len(everything), piece):
        writer.append(everything[at : at + piece], starts[(starts >= at) & (starts < at + piece)] - at)
    return [TokenShard(path) for path in writer.close()]


@given(st.lists(st.lists(st.integers(0, 70_000), max_size=23), max_size=12), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_written_tokens_and_documents_come_back(
    tmp_path_factory, documents: list[list[int]], shard_tokens: int
) -> None:
    shards = write_shards(tmp_path_factory.mktemp("s"), documents, 70_001, shard_tokens)
    everything = [i for ids in documents for i in ids]
    assert [int(i) for shard in shards for i in shard.tokens] == everything
    assert all(shard.n_tokens == shard_tokens for shard in shards[:-1])
    base, starts = 0, []
    for shard in shards:
        starts += [int(start) + base for start in shard.starts]
        base += shard.n_tokens
    expected = [sum(map(len, documents[:k])) for k, ids in enumerate(documents) if ids]
    assert starts == expected


@pytest.mark.parametrize(("vocab_size", "dtype"), [(256, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_the_type_follows_the_vocabulary(vocab_size: int, dtype: str, tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, [[0, 1, vocab_size - 1]], vocab_size, 100)
    assert shard.tokens.dtype == np.dtype(dtype) == token_dtype(vocab_size)
    assert shard.tokens.tolist() == [0, 1, vocab_size - 1]
    assert shard.header["vocab_size"] == vocab_size and shard.header["tokenizer"] == "fp"


def test_the_layout_is_the_documented_one(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, [[7, 8, 9], [10, 11]], 300, 100)
    raw = shard.path.read_bytes()
    magic, version, length, crc = struct.unpack_from("<8sIII", raw)
    assert (magic, version) == (b"MINIGPT\0", 1)
    assert zlib.crc32(raw[20 : 20 + length]) == crc
    assert json.loads(raw[20 : 20 + length])["n_documents"] == 2
    assert np.frombuffer(raw, "<u2", 5, HEADER_BYTES).tolist() == [7, 8, 9, 10, 11]
    assert np.frombuffer(raw, "<u8", 2, HEADER_BYTES + 16).tolist() == [0, 3]
    assert len(raw) == HEADER_BYTES + 16 + 16


def test_every_kind_of_damage_is_noticed(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, [[7, 8, 9], [10, 11]], 300, 100)
    shard.verify(tmp_path)
    whole = shard.path.read_bytes()
    used = [*range(20 + len(json.dumps(shard.header))), *range(HEADER_BYTES, HEADER_BYTES + 10),
            *range(len(whole) - 16, len(whole))]  # fmt: skip
    for at in used:  # all but the padding, which means nothing
        shard.path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(CorruptShardError, match=r"tokens-00000\.tok"):
            TokenShard(shard.path).verify(tmp_path)
    for size in [0, 1, 19, 4095, 4096, len(whole) - 1]:
        shard.path.write_bytes(whole[:size])
        with pytest.raises(CorruptShardError):
            TokenShard(shard.path)
    shard.path.write_bytes(whole + b"\0")
    with pytest.raises(CorruptShardError, match="instead of"):
        TokenShard(shard.path)
    shard.path.unlink()
    with pytest.raises(CorruptShardError, match="cannot be read"):
        TokenShard(shard.path)


def age(path: Path, seconds: float = 60) -> None:
    """Make a file look as if it had been written a while ago (its change time stays now, so tests shorten the wait)."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_hash_is_worked_out_once_for_an_unchanged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "SETTLED_NS", 0)
    path = tmp_path / "a"
    path.write_bytes(b"one")
    time.sleep(0.05)
    calls = []

    def facts() -> dict:
        return memo.memoised(path, tmp_path, "k", lambda p: calls.append(p) or {"content": p.read_text()})

    assert [facts(), facts()] == [{"content": "one"}] * 2
    assert len(calls) == 1
    memo.memoised(path, tmp_path, "other", lambda p: calls.append(p) or {})
    assert len(calls) == 2
    path.write_bytes(b"two")  # same size
    time.sleep(0.05)
    assert facts() == {"content": "two"}
    path.write_bytes(b"three")
    assert facts() == {"content": "three"}
    for file in (tmp_path / "memo").iterdir():
        file.write_text("{damaged")
    assert facts() == {"content": "three"}


def test_a_fresh_file_is_not_trusted_to_stay(tmp_path: Path) -> None:
    """Two writes within a tick of the clock leave the same time: what is that fresh is read again."""
    path = tmp_path / "a"
    path.write_bytes(b"one")
    memo.memoised(path, tmp_path, "k", lambda p: {"content": "one"})
    stat = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert memo.memoised(path, tmp_path, "k", lambda p: {"content": "two"}) == {"content": "two"}


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    with pytest.raises(RequestError, match="changed while it was being read"):
        memo.memoised(path, tmp_path, "k", lambda p: {"n": p.write_bytes(b"longer")})


# --- token files of others


def llm_c(magic: int, version: int, ids: np.ndarray, count: int | None = None) -> bytes:
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids) if count is None else count
    return header.tobytes() + ids.tobytes()


def test_formats_of_token_files(tmp_path: Path) -> None:
    ids = np.array([5, 0, 50_256, 17, 9], dtype="<u2")
    path = tmp_path / "train.bin"
    ids.tofile(path)  # exactly what nanoGPT's prepare.py does
    assert open_tokens(path, None).tolist() == ids.tolist()
    ids.astype("<u4").tofile(path)
    assert open_tokens(path, "uint32").tolist() == ids.tolist()
    path.write_bytes(llm_c(20240520, 1, ids))
    assert open_tokens(path, None).tolist() == ids.tolist()
    path.write_bytes(llm_c(20240801, 7, ids.astype("<u4") + 100_000))
    assert open_tokens(path, None).tolist() == [int(i) + 100_000 for i in ids]
    for dtype in ("<u2", ">u4", "<i4", "<i8"):
        np.save(tmp_path / "a.npy", ids.astype(dtype))
        assert open_tokens(tmp_path / "a.npy", None).tolist() == ids.tolist()


def npy(array: np.ndarray, **options) -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


BAD = [
    ("a.bin", b"", None, "is empty"),
    ("a.bin", b"abc", None, "3 bytes, which is no whole number of 2-byte token ids"),
    ("a.bin", b"abcdef", "uint32", "no whole number of 4-byte"),
    ("a.bin", llm_c(20240520, 1, np.zeros(9, "<u2"), count=10), None, "1,042 bytes, but its llm.c header promises 10"),
    ("a.bin", llm_c(20240520, 1, np.zeros(9, "<u2")), "uint32", "holds uint16 ids by its llm.c header"),
    ("a.npy", b"\x93NUMPY", None, "not a readable .npy"),
    ("a.npy", b"PK\x03\x04zip", None, "not a readable .npy"),
    ("a.npy", npy(np.zeros(4, "<u2"))[:-1], None, "not a readable .npy"),
    ("a.npy", npy(np.zeros(0, "<u2")), None, "not a readable .npy|no tokens"),
    ("a.npy", npy(np.zeros((2, 2), "<u2")), None, "one-dimensional array of integers"),
    ("a.npy", npy(np.zeros(2)), None, "holds float64"),
    ("a.npy", npy(np.array([None, 1], dtype=object), allow_pickle=True), None, "not a readable .npy"),
    ("a.npy", npy(np.zeros(4, "<u2")), "uint16", "dtype='uint16' has no effect"),
]


@pytest.mark.parametrize(("name", "content", "dtype", "sentence"), BAD)
def test_token_files_that_are_none(name: str, content: bytes, dtype: str | None, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError, match=sentence) as caught:
        open_tokens(tmp_path / name, dtype)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_ids_outside_the_vocabulary_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt.data.preparing.token_files.SCAN_TOKENS", 4)
    ids = np.array([1, 2, 3, 4, 5, 6, 300, 400], "<u2")
    ids.tofile(tmp_path / "a.bin")
    with pytest.raises(RequestError, match=r"holds id 300 at position 6, but the vocabulary has 300 ids"):
        scan(tmp_path / "a.bin", None, 300, tmp_path)
    assert scan(tmp_path / "a.bin", None, 401, tmp_path) == scan(tmp_path / "a.bin", None, 500, tmp_path)
    np.save(tmp_path / "b.npy", np.array([1, 2, -1, 3]))
    with pytest.raises(RequestError, match="holds id -1 at position 2"):
        scan(tmp_path / "b.npy", None, 300, tmp_path)


# --- datasets


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
@settings(max_examples=80, deadline=None)
def test_ranges_across_parts(sizes: list[int], data: st.DataObject) -> None:
    total = sum(sizes)
    ids = np.arange(total, dtype="<u2")
    parts = np.split(ids, np.cumsum(sizes)[:-1])
    dataset = TokenDataset(parts, 1000, "fp")
    assert len(dataset) == total
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    piece = dataset.tokens(start, stop)
    assert piece.dtype == np.uint16 and piece.tolist() == list(range(start, stop))
    for bad in [(-1, 1), (0, total + 1), (2, 1)]:
        with pytest.raises(IndexError):
            dataset.tokens(*bad)


def test_windows_and_counts() -> None:
    dataset = TokenDataset([np.array([3, 1, 2], "<i8"), np.array([1, 0], "<u2")], 5, "fp")
    rows = dataset.windows([0, 2], 3)
    assert rows.dtype == np.int64 and rows.tolist() == [[3, 1, 2], [2, 1, 0]]
    assert dataset.count_ids().tolist() == [1, 2, 1, 1, 0]
    dataset.name = "the training split of a.txt"
    dataset.require_context(4)
    with pytest.raises(RequestError, match=r"a.txt has 5 tokens, too short for model.context_length=5: at least 6"):
        dataset.require_context(5)


def test_documents_of_raw_token_files_begin_after_each_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt.data.dataset.SCAN_TOKENS", 3)
    ids = np.array([9, 1, 2, 9, 9, 3, 9], "<u2")
    assert TokenDataset([ids], 10, "fp", eot_id=9).document_offsets.tolist() == [0, 1, 4, 5]
    assert TokenDataset([ids], 10, "fp").n_documents == 1
