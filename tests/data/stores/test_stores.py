"""Prepared folders in stores: the same rows as from a folder of this machine, and one sentence for what is wrong."""

import importlib
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minigpt.config import DataConfig, RequestError, WorkError
from minigpt.data.dataset import TokenDataset
from minigpt.data.preparing.out import write_folders
from minigpt.data.preparing.prepare import prepare
from minigpt.data.preparing.shards import CorruptShardError
from minigpt.data.reading.download import DownloadError
from minigpt.data.rows.order import WindowOrder
from minigpt.data.stores import remote
from minigpt.data.stores.open_shards import open_shards
from minigpt.data.stores.shard_cache import ShardCache
from minigpt.tokenizer import CharTokenizer


def rows(dataset: TokenDataset, context: int, count: int) -> list[list[int]]:
    """The first training rows, read as training reads them."""
    order = WindowOrder(len(dataset), context, seed=3, stretch=dataset.stretch)
    found = []
    for index in range(count):
        if (span := order.next_stretch(index)) is not None:
            dataset.prefetch(*span)
        start = order.window(index)[1]
        found.append(dataset.tokens(start, start + context + 1).tolist())
    return found


@given(
    seed=st.integers(0, 2**32), count=st.integers(4, 60), shard_tokens=st.integers(60, 400),
    context=st.integers(1, 12), room=st.integers(1, 4), data=st.data(),
)  # fmt: skip
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_store_gives_what_the_folder_gives(
    seed, count, shard_tokens, context, room, data, folders, tokenizer, in_memory, tmp_path_factory
) -> None:
    """Through a cache that holds one to four shards: every id, row and document."""
    base = tmp_path_factory.mktemp("store")
    documents = folders.documents(seed, count)
    val_from = data.draw(st.integers(count // 2, count - 1))
    ids = folders.write(base / "folder", documents, shard_tokens, val_from)
    largest = max(path.stat().st_size for path in (base / "folder").glob("*.tok"))
    local = open_shards(str(base / "folder"), tokenizer, ShardCache(base / "one", 1))
    far = open_shards(in_memory(base / "folder"), tokenizer, ShardCache(base / "two", room * largest))
    assert list(local) == list(far) == ["train", "val"]
    assert np.concatenate([far[split].tokens(0, len(far[split])) for split in far]).tolist() == ids.tolist()
    for split in far:
        ours, theirs = far[split], local[split]
        assert (len(ours), ours.fingerprint, ours.stretch) == (len(theirs), theirs.fingerprint, theirs.stretch)
        places = np.array(data.draw(st.lists(st.integers(0, len(ours) - 1), max_size=8)), np.int64)
        ends = np.cumsum(list(map(len, documents[:val_from] if split == "train" else documents[val_from:])))
        truth = np.searchsorted(ends, places, side="right").tolist()
        assert ours.document_at(places).tolist() == theirs.document_at(places).tolist() == truth
        assert ours.n_documents == theirs.n_documents == len(ends)
        assert ours.document_offsets.tolist() == theirs.document_offsets.tolist() == [0, *ends[:-1].tolist()]
        if len(ours) > context:
            assert rows(ours, context, 40) == rows(theirs, context, 40)
    held = sum(path.stat().st_size for path in (base / "two" / "stores").glob("*.tok"))
    assert held <= room * largest


def test_over_http_and_each_shard_once(folders, tokenizer, serve, shards, tmp_path: Path) -> None:
    ids = folders.write(tmp_path / "f", folders.documents(1, 60), 200)
    server = serve(tmp_path / "f")
    (dataset,) = open_shards(server.address + "/", tokenizer, shards).values()
    assert server.requests == ["meta.json"]  # nothing is fetched before it is needed
    assert dataset.tokens(0, len(ids)).tolist() == ids.tolist()
    again = open_shards(server.address, tokenizer, ShardCache(shards.cache, shards.limit))["all"]
    assert again.tokens(0, len(ids)).tolist() == ids.tolist()
    names = [name for name in server.requests if name != "meta.json"]
    assert sorted(names) == sorted(path.name for path in (tmp_path / "f").glob("*.tok"))
    assert {path.suffix for path in (shards.cache / "stores").iterdir()} <= {".tok", ".lock", ".fetch", ""}


def test_only_the_shards_of_a_row_are_fetched(folders, tokenizer, serve, shards, tmp_path: Path) -> None:
    ids = folders.write(tmp_path / "f", folders.documents(1, 60), 200)
    server = serve(tmp_path / "f")
    dataset = open_shards(server.address, tokenizer, shards)["all"]
    assert dataset.tokens(395, 405).tolist() == ids[395:405].tolist()
    assert dataset.document_at([390, 401]).tolist() == (np.cumsum(ids == 0) - (ids == 0))[[390, 401]].tolist()
    assert dataset.n_documents == 60
    assert server.requests[1:] == ["tokens-00001.tok", "tokens-00002.tok"]


def test_file_addresses_and_home(folders, tokenizer, shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ids = folders.write(tmp_path / "f", folders.documents(1, 9), 10**6)
    for address in (f"file://{tmp_path}/f", "~/f"):
        dataset = open_shards(address, tokenizer, shards)["all"]
        assert dataset.tokens(0, len(ids)).tolist() == ids.tolist() and dataset.stretch is None
    assert not list((shards.cache / "stores").iterdir())  # nothing was copied


# --- stores that fail


@pytest.mark.parametrize(
    "faults", [[500, 503, 429], ["cut", "cut"], ["stall"], ["flip"], [500, "cut", "stall", 502, "flip"]], ids=str
)
def test_faults_that_go_away(faults, folders, tokenizer, serve, shards, quick, tmp_path: Path) -> None:
    ids = folders.write(tmp_path / "f", folders.documents(1, 60), 200)
    server = serve(tmp_path / "f")
    server.faults = list(faults)
    dataset = open_shards(server.address, tokenizer, shards)["all"]
    assert dataset.tokens(0, len(ids)).tolist() == ids.tolist()
    assert server.faults == []


def test_faults_that_stay(folders, tokenizer, serve, shards, quick, tmp_path: Path) -> None:
    folders.write(tmp_path / "f", folders.documents(1, 60), 200)
    server = serve(tmp_path / "f")
    dataset = open_shards(server.address, tokenizer, shards)["all"]
    server.faults = [500] * 100
    with pytest.raises(DownloadError, match=r"tokens-00001.tok could not be downloaded, tried 6 times: .*500"):
        dataset.tokens(200, 210)
    server.faults = ["flip"] * 2
    with pytest.raises(CorruptShardError, match=rf"{server.address}/tokens-00001.tok is damaged") as caught:
        dataset.tokens(200, 210)
    assert "\n" not in str(caught.value)
    (tmp_path / "f" / "tokens-00001.tok").unlink()
    with pytest.raises(RequestError, match=r"tokens-00001.tok cannot be downloaded: the server answered 404"):
        dataset.tokens(200, 210)
    assert not [path for path in (shards.cache / "stores").iterdir() if path.suffix in (".tok", ".part")]
    (tmp_path / "f" / "tokens-00000.tok").write_bytes(b"short")
    with pytest.raises(WorkError, match=r"tokens-00000.tok has 5 bytes on the server, not the expected"):
        dataset.tokens(0, 10)


class FlakyFiles:
    """A file system of fsspec's kind around another one: some requests fail, hang, or give too little."""

    def __init__(self, files, faults: list) -> None:
        self.files, self.faults = files, faults
        self.asked: list[int | None] = []

    def cat_file(self, path: str, *, start: int | None = None, end: int | None = None) -> bytes:  # s3fs has others
        self.asked.append(start)
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        if fault == "hang":
            remote.time.sleep(2)
        data = self.files.cat_file(path, start, end)
        return data[: len(data) // 3] if fault == "short" else data


@pytest.fixture
def flaky(folders, tokenizer, in_memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """(faults to come, the file system, opener of a data set in it, its ids)."""
    import fsspec

    monkeypatch.setattr(remote, "PIECE_BYTES", 1000)
    ids = folders.write(tmp_path / "f", folders.documents(1, 60), 400)
    address, real = in_memory(tmp_path / "f"), fsspec.url_to_fs
    files = FlakyFiles(fsspec.filesystem("memory"), [])
    monkeypatch.setattr(fsspec, "url_to_fs", lambda url: (files, real(url)[1]))
    return files, lambda shards: open_shards(address, tokenizer, shards)["all"], ids


def test_pieces_are_asked_for_again(flaky, shards, quick) -> None:
    files, opened, ids = flaky
    dataset = opened(shards)
    files.asked.clear()
    files.faults += [None, OSError("slow down"), "hang", None, "short", None]
    assert dataset.tokens(0, 400).tolist() == ids[:400].tolist()
    assert files.asked[:6] == [0, 1000, 1000, 1000, 2000, 2333]  # each goes on where the last one came to


def test_a_kill_in_the_middle_of_a_shard(flaky, shards, quick) -> None:
    """What has arrived is kept and gone on with, and if it has gone bad the shard is fetched from its beginning."""
    files, opened, ids = flaky
    dataset = opened(shards)
    files.faults += [None, None, *[OSError("gone")] * remote.ATTEMPTS]
    with pytest.raises(DownloadError, match=r"memory://.*tokens-00000.tok could not be read, tried 6 times: gone"):
        dataset.tokens(0, 9)
    (part,) = (shards.cache / "stores").glob("*.part/part")
    assert part.stat().st_size == 2000
    files.asked.clear()
    assert dataset.tokens(0, 400).tolist() == ids[:400].tolist() and files.asked[0] == 2000

    files.faults += [None, *[OSError("gone")] * remote.ATTEMPTS]
    with pytest.raises(DownloadError):
        dataset.tokens(400, 409)
    (part,) = (shards.cache / "stores").glob("*.part/part")
    part.write_bytes(b"\1" * part.stat().st_size)
    assert dataset.tokens(400, 800).tolist() == ids[400:800].tolist()


class NoCredentialsError(Exception):
    """As botocore calls it."""


@pytest.mark.parametrize("error", [PermissionError("Access Denied"), NoCredentialsError("Access Denied")])
def test_a_store_that_may_not_be_read(error, flaky, shards) -> None:
    files, opened, _ = flaky
    files.faults.append(error)
    with pytest.raises(RequestError, match=r"memory://.*/meta.json may not be read: Access Denied; set the store's"):
        opened(shards)


def test_progress_is_told(flaky, tmp_path: Path) -> None:
    said = []
    dataset = flaky[1](ShardCache(tmp_path / "cache", 10**9, lambda *facts: said.append(facts)))
    dataset.tokens(0, 1)
    size = next((tmp_path / "f").glob("tokens-00000.tok")).stat().st_size
    assert said[0] == ("download", 1000, size) and said[-1] == ("download", size, size)


# --- requests that cannot work


def sentence(caught: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_prepared_folder(serve, in_memory, tokenizer, shards, quick, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    pytest.importorskip("fsspec")
    places = [serve(tmp_path / "empty").address, "memory://nowhere", str(tmp_path / "empty"), str(tmp_path / "no")]
    for place in [*places, str(tmp_path / "file")]:
        with pytest.raises(RequestError, match=r"minigpt data prepare --out") as caught:
            open_shards(place, tokenizer, shards)
        assert place in sentence(caught)


def test_another_tokenizer_or_vocabulary(folders, shards, in_memory, tmp_path: Path) -> None:
    folders.write(tmp_path / "f", folders.documents(1, 9), 10**6)
    for address in (str(tmp_path / "f"), in_memory(tmp_path / "f")):
        other = SimpleNamespace(fingerprint="other", vocab_size=999)
        with pytest.raises(
            RequestError, match=r"made with another tokenizer \(300 ids\) than .* \(999 ids\)"
        ) as caught:
            open_shards(address, other, shards)
        assert sentence(caught).endswith(f"{address}/tokenizer") and "set tokenizer.kind=file and" in str(caught.value)
        smaller = SimpleNamespace(fingerprint="fp", vocab_size=299)
        with pytest.raises(RequestError, match=r"use a vocabulary of 300 ids, the tokenizer of this run has 299"):
            open_shards(address, smaller, shards)
        larger = SimpleNamespace(fingerprint="fp", vocab_size=305)  # special tokens were added: the ids are the same
        assert open_shards(address, larger, shards)["all"].tokens(0, 1)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"format": 1}', b'{"format": 2}', b"\xff", b'{"format": 2, "shards": 3}']
)
def test_a_meta_json_that_is_none(content: bytes, tokenizer, shards, in_memory, tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "meta.json").write_bytes(content)
    for address in (str(tmp_path / "f"), in_memory(tmp_path / "f")):
        with pytest.raises(RequestError, match=r"meta\.json") as caught:
            open_shards(address, tokenizer, shards)
        assert address in sentence(caught)


def test_names_that_lead_out_of_the_folder(folders, tokenizer, shards, in_memory, tmp_path: Path) -> None:
    folders.write(tmp_path / "f", folders.documents(1, 9), 10**6)
    meta = tmp_path / "f" / "meta.json"
    for name in ("../secret", "/etc/passwd", "a/b", "..", ""):
        changed = json.loads(meta.read_text())
        changed["shards"][0]["name"] = name
        meta.write_text(json.dumps(changed))
        for address in (str(tmp_path / "f"), in_memory(tmp_path / "f")):
            with pytest.raises(RequestError, match="files outside its folder"):
                open_shards(address, tokenizer, shards)


@pytest.mark.parametrize("address", ["nosuch://bucket/folder", "s4://bucket"])
def test_a_kind_of_store_that_nobody_knows(address: str, tokenizer, shards) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(RequestError, match=rf"{address} cannot be read .*: give a folder, https://, s3://") as caught:
        open_shards(address, tokenizer, shards)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "module", "extra"),
    [("memory://a", "fsspec", "stores"), ("s3://a/b", "fsspec", "s3"), ("s3://a/b", "s3fs", "s3"),
     ("gs://a/b", "gcsfs", "gs")],
)  # fmt: skip
def test_a_library_that_is_not_there(
    address: str, module: str, extra: str, tokenizer, shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fsspec")
    registry = importlib.import_module("fsspec.registry")
    monkeypatch.setattr(registry, "_registry", {})  # what was imported before counts for nothing
    monkeypatch.setattr(registry, "registry", {})
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RequestError, match=rf'reading {address} needs .*pip install "minigpt\[{extra}\]"$'):
        open_shards(address, tokenizer, shards)


def test_a_cache_that_is_too_small(folders, tokenizer, in_memory, tmp_path: Path) -> None:
    """For one shard, or for those among which rows are drawn: it would fetch one for nearly every row."""
    folders.write(tmp_path / "f", folders.documents(1, 60), 200)
    address = in_memory(tmp_path / "f")
    sizes = [path.stat().st_size for path in (tmp_path / "f").glob("*.tok")]
    with pytest.raises(RequestError, match=rf"data.store_cache_gb=1e-06 is too small for a shard of {address}: give "):
        open_shards(address, tokenizer, ShardCache(tmp_path / "cache", 1000))
    three = ShardCache(tmp_path / "cache", 3 * max(sizes))
    assert open_shards(address, tokenizer, three, together=600)
    with pytest.raises(RequestError, match=r"is too small for the 4 shards of memory://.* drawn from at a time: give"):
        open_shards(address, tokenizer, three, together=601)
    assert open_shards(address, tokenizer, ShardCache(tmp_path / "cache", len(sizes) * max(sizes)), together=1 << 62)


def test_a_damaged_shard_of_this_machine_is_named(folders, tokenizer, shards, tmp_path: Path) -> None:
    folders.write(tmp_path / "f", folders.documents(1, 60), 200)
    path = tmp_path / "f" / "tokens-00002.tok"
    path.write_bytes(path.read_bytes()[:-20] + bytes(20))
    with pytest.raises(CorruptShardError, match=r"tokens-00002\.tok"):
        open_shards(str(tmp_path / "f"), tokenizer, shards)
    path.unlink()
    with pytest.raises(CorruptShardError, match=r"tokens-00002\.tok cannot be read"):
        open_shards(str(tmp_path / "f"), tokenizer, shards)


def test_a_failed_prefetch_is_only_logged(folders, tokenizer, serve, shards, quick, tmp_path: Path, caplog) -> None:
    ids = folders.write(tmp_path / "f", folders.documents(1, 60), 200)
    server = serve(tmp_path / "f")
    dataset = open_shards(server.address, tokenizer, shards)["all"]
    server.faults = [500] * remote.ATTEMPTS
    with caplog.at_level(logging.WARNING, "minigpt"):
        dataset.prefetch(0, 200)
        while not caplog.messages:
            remote.time.sleep(0.01)
    assert "could not be downloaded, tried 6 times" in caplog.text and "when it is needed" in caplog.text
    assert dataset.tokens(0, 200).tolist() == ids[:200].tolist()


def test_text_and_its_shards_are_the_same_data(serve, shards, tmp_path: Path) -> None:
    """Prepared, written with --out, and read back from here and over HTTP: the same tokens, splits and fingerprint."""
    text = "".join(f"Line {i} of a text about the number {i * i}.\n" for i in range(400))
    tokenizer = CharTokenizer.from_texts([text])
    (tmp_path / "a.txt").write_text(text)
    prepared = prepare(DataConfig(train=str(tmp_path / "a.txt")), tokenizer, cache=tmp_path / "cache")
    write_folders(prepared, tokenizer, tmp_path / "out", shard_tokens=3000)
    for address in (str(tmp_path / "out"), serve(tmp_path / "out").address):
        found = prepare(DataConfig(train={"shards": address}), tokenizer, cache=tmp_path / "cache")
        assert found.fingerprint == prepared.fingerprint
        for ours, theirs in [(found.train, prepared.train), (found.val, prepared.val)]:
            assert ours.tokens(0, len(ours)).tolist() == theirs.tokens(0, len(theirs)).tolist()
            assert ours.document_offsets.tolist() == theirs.document_offsets.tolist()
        assert found.train.stretch == 3000
    packed = DataConfig(train={"shards": address}, packing="documents", store_cache_gb=8e-6)
    with pytest.raises(RequestError, match=r"data.store_cache_gb=8e-06 is too small for the \d+ shards"):
        prepare(packed, tokenizer, cache=tmp_path / "cache")
