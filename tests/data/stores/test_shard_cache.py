"""The cache of shards: bounded, shared between threads and processes, and never pulled away under a reader."""

import gc
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minigpt.config import WorkError
from minigpt.data.stores import shard_cache
from minigpt.data.stores.open_shards import open_shards
from minigpt.data.stores.shard_cache import ShardCache


@pytest.fixture
def eight(folders, serve, tmp_path: Path) -> SimpleNamespace:
    """Eight shards of 500 tokens on a server; `bytes` is the size of the largest."""
    documents = [np.append((np.arange(99) + 7 * number) % 299 + 1, 0) for number in range(40)]
    ids = folders.write(tmp_path / "eight", documents, 500)
    sizes = [path.stat().st_size for path in (tmp_path / "eight").glob("*.tok")]
    assert len(sizes) == 8
    return SimpleNamespace(ids=ids, server=serve(tmp_path / "eight"), bytes=max(sizes), folder=tmp_path / "eight")


def held(cache: ShardCache) -> int:
    """Bytes of shards on the disk; one that is being put in its place while this looks counts once."""
    sizes: dict[str, int] = {}
    for path in cache.folder.rglob("*"):
        if path.suffix == ".tok" or path.name == "part" or (path.name.startswith("data-") and path.suffix != ".json"):
            key = path.relative_to(cache.folder).parts[0][:64]
            sizes[key] = max(sizes.get(key, 0), path.stat().st_size)
    return sum(sizes.values())


def shard_names(eight) -> list[str]:
    return [name for name in eight.server.requests if name.endswith(".tok")]


def test_the_one_used_longest_ago_goes(eight, tokenizer, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 3 * eight.bytes)
    dataset = open_shards(eight.server.address, tokenizer, cache)["all"]
    for shard in (0, 1, 2, 0, 3, 0, 1):
        dataset.tokens(500 * shard, 500 * shard + 9)
        time.sleep(0.01)
    assert [int(name[7:12]) for name in shard_names(eight)] == [0, 1, 2, 3, 1]  # 1 went for 3, then 2 for 1
    assert len(list(cache.folder.glob("*.tok"))) == 3


@pytest.mark.slow
def test_the_order_of_use_outlives_the_process(eight, tokenizer, tmp_path: Path) -> None:
    for shard in (0, 1, 2, 0):
        cache = ShardCache(tmp_path / "cache", 3 * eight.bytes)  # as another process has one
        open_shards(eight.server.address, tokenizer, cache)["all"].tokens(500 * shard, 500 * shard + 9)
        del cache
        gc.collect()
        time.sleep(0.02)
    cache = ShardCache(tmp_path / "cache", 3 * eight.bytes)
    dataset = open_shards(eight.server.address, tokenizer, cache)["all"]
    dataset.tokens(1500, 1509)
    dataset.tokens(0, 9)
    assert len(shard_names(eight)) == 4


def test_what_is_being_read_stays(eight, tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for one shard, a second one waits for the reader of the first, and gives up after a while."""
    monkeypatch.setattr(shard_cache, "ROOM_SECONDS", 0.2)
    cache = ShardCache(tmp_path / "cache", eight.bytes + 10)
    dataset = open_shards(eight.server.address, tokenizer, cache)["all"]
    first = dataset._parts[0].shard
    with cache.opened(first) as opened:
        with pytest.raises(WorkError, match=r"no room for .*/tokens-00001.tok: .* in use .* data.store_cache_gb="):
            dataset.tokens(500, 510)
        assert opened.tokens.tolist() == eight.ids[:500].tolist()
        assert [path.stem for path in cache.folder.glob("*.tok")] == [first.sha256]
    assert dataset.tokens(500, 510).tolist() == eight.ids[500:510].tolist()
    assert first.sha256 not in [path.stem for path in cache.folder.glob("*.tok")]


HOLDER = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from minigpt.data.stores.shard_cache import ShardCache
from minigpt.data.stores.open_shards import open_shards
address, cache, limit = sys.argv[1:]
tokenizer = SimpleNamespace(fingerprint="fp", vocab_size=300)
dataset = open_shards(address, tokenizer, ShardCache(Path(cache), int(limit)))["all"]
print(sum(dataset.tokens(0, 500).tolist()), flush=True)
sys.stdin.read()
"""


def test_what_another_process_has_mapped_stays(
    eight, tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_cache, "ROOM_SECONDS", 0.2)
    limit = eight.bytes + 10
    command = [sys.executable, "-c", HOLDER, eight.server.address, str(tmp_path / "cache"), str(limit)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert int(other.stdout.readline()) == eight.ids[:500].sum()
        dataset = open_shards(eight.server.address, tokenizer, ShardCache(tmp_path / "cache", limit))["all"]
        assert dataset.tokens(0, 500).tolist() == eight.ids[:500].tolist()  # the same shard serves both
        assert shard_names(eight) == ["tokens-00000.tok"]
        with pytest.raises(WorkError, match="no room"):
            dataset.tokens(500, 510)
        other.kill()
    assert dataset.tokens(500, 510).tolist() == eight.ids[500:510].tolist()  # its lock went with it


def test_an_idle_shard_is_let_go_of(eight, tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that another process may remove it, though this one goes on reading others."""
    monkeypatch.setattr(shard_cache, "IDLE_SECONDS", 0.05)
    ours, theirs = (ShardCache(tmp_path / "cache", 2 * eight.bytes + 10) for _ in range(2))
    mine = open_shards(eight.server.address, tokenizer, ours)["all"]
    mine.tokens(0, 9), mine.tokens(500, 509)
    time.sleep(0.1)
    mine.tokens(500, 509)
    other = open_shards(eight.server.address, tokenizer, theirs)["all"]
    assert other.tokens(1000, 1010).tolist() == eight.ids[1000:1010].tolist()
    assert held(ours) <= ours.limit


def test_a_bounded_number_of_shards_is_open(eight, tokenizer, shards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_cache, "KEEP_OPEN", 3)
    dataset = open_shards(eight.server.address, tokenizer, shards)["all"]
    for shard in [*range(8), *range(8)]:
        assert dataset.tokens(500 * shard, 500 * shard + 9).tolist() == eight.ids[500 * shard :][:9].tolist()
    assert len(shards._open) <= 4 and len(shard_names(eight)) == 8


def test_what_killed_processes_left_counts_and_goes(eight, tokenizer, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 2 * eight.bytes)
    for number in range(2):
        part = cache.folder / f"{number:064x}-{eight.bytes}.part"
        part.mkdir()
        (part / "part").write_bytes(b"half")
    (cache.folder / "something else").write_text("not ours")
    dataset = open_shards(eight.server.address, tokenizer, cache)["all"]
    assert dataset.tokens(0, len(eight.ids)).tolist() == eight.ids.tolist()
    assert not list(cache.folder.glob("*.part")) and (cache.folder / "something else").exists()


def test_a_copy_that_was_damaged_is_fetched_again(eight, tokenizer, tmp_path: Path, caplog) -> None:
    dataset = open_shards(eight.server.address, tokenizer, ShardCache(tmp_path / "cache", 10**9))["all"]
    dataset.tokens(0, 9)
    (path,) = (tmp_path / "cache" / "stores").glob("*.tok")
    for damaged in (path.read_bytes()[:-1], path.read_bytes()[:5000] + b"??" + path.read_bytes()[5002:], b""):
        path.unlink()
        path.write_bytes(damaged)
        again = open_shards(eight.server.address, tokenizer, ShardCache(tmp_path / "cache", 10**9))["all"]
        assert again.tokens(0, 500).tolist() == eight.ids[:500].tolist()
        assert "was damaged; it is fetched again" in caplog.text
        caplog.clear()


def test_a_cache_that_is_deleted_while_in_use(eight, tokenizer, shards) -> None:
    dataset = open_shards(eight.server.address, tokenizer, shards)["all"]
    dataset.tokens(0, 9)
    for path in shards.folder.iterdir():
        path.unlink()
    assert dataset.tokens(0, 1000).tolist() == eight.ids[:1000].tolist()


def test_a_full_disk_is_one_sentence(eight, tokenizer, shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_shards(eight.server.address, tokenizer, shards)["all"]

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_cache.os, "replace", full)
    with pytest.raises(WorkError, match=r"could not write .*: no space left on device$"):
        dataset.tokens(0, 9)
    assert held(shards) == 0
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match=r"could not write .*: not a directory"):
        ShardCache(tmp_path / "file", 10)


def test_the_next_shard_arrives_before_it_is_read(eight, tokenizer, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 4 * eight.bytes)
    dataset = open_shards(eight.server.address, tokenizer, cache)["all"]
    dataset.tokens(0, 9)
    for _ in range(20):
        dataset.prefetch(500, 1000)
    end = time.monotonic() + 5
    while len(list(cache.folder.glob("*.tok"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert shard_names(eight) == ["tokens-00000.tok", "tokens-00001.tok"]
    dataset.tokens(500, 1000)
    assert len(shard_names(eight)) == 2

    small = open_shards(eight.server.address, tokenizer, ShardCache(tmp_path / "small", 2 * eight.bytes))["all"]
    small.prefetch(0, 500)  # it would push out what is being read
    time.sleep(0.1)
    assert not list((tmp_path / "small" / "stores").glob("*.tok"))


def test_many_threads_want_the_same_shard(eight, tokenizer, shards) -> None:
    dataset = open_shards(eight.server.address, tokenizer, shards)["all"]
    barrier = threading.Barrier(8)

    def read(_: int) -> list[int]:
        barrier.wait()
        return dataset.tokens(0, 500).tolist()

    with ThreadPoolExecutor(8) as threads:
        assert all(found == eight.ids[:500].tolist() for found in threads.map(read, range(8)))
    assert shard_names(eight) == ["tokens-00000.tok"]


def soak(eight, tokenizer, cache: Path, rows: int, faults: bool) -> None:
    """Four threads read random windows through a cache that holds two of eight shards, prefetching at random."""
    shards = ShardCache(cache, 2 * eight.bytes + 100)
    dataset = open_shards(eight.server.address, tokenizer, shards)["all"]
    over, done = [], threading.Event()

    def read(seed: int) -> int:
        draw = np.random.default_rng(seed)
        for _ in range(rows):
            start = int(draw.integers(0, len(eight.ids) - 70))
            assert dataset.tokens(start, start + 65).tolist() == eight.ids[start : start + 65].tolist()
            assert int(dataset.document_at(start)) == start // 100
            if draw.random() < 0.1:
                dataset.prefetch(start, start + 65)
            if faults and draw.random() < 0.05:
                eight.server.faults.append(["cut", 503, "flip"][draw.integers(3)])
        return rows

    def watch() -> None:
        while not done.wait(0.002):
            try:
                over.append(held(shards))
            except FileNotFoundError:  # removed while it was looked at
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(read, range(4))) == [rows] * 4
    finally:
        done.set()
        watcher.join()
    assert max(over) <= shards.limit
    assert not list(shards.folder.glob("*.part"))


@pytest.mark.slow
def test_threads_through_a_small_cache(eight, tokenizer, tmp_path: Path) -> None:
    soak(eight, tokenizer, tmp_path / "cache", 40, faults=False)


@pytest.mark.slow
def test_soak(eight, tokenizer, tmp_path: Path, quick) -> None:
    soak(eight, tokenizer, tmp_path / "cache", 150, faults=True)


READERS = """
import sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from minigpt.data.stores.shard_cache import ShardCache
from minigpt.data.stores.open_shards import open_shards
address, cache, limit, seed = sys.argv[1:]
tokenizer = SimpleNamespace(fingerprint="fp", vocab_size=300)
dataset = open_shards(address, tokenizer, ShardCache(Path(cache), int(limit)))["all"]
truth = np.concatenate([np.append((np.arange(99) + 7 * number) % 299 + 1, 0) for number in range(40)])
draw = np.random.default_rng(int(seed))
for _ in range(100):
    start = int(draw.integers(0, 3900))
    assert dataset.tokens(start, start + 65).tolist() == truth[start : start + 65].tolist()
print("done")
"""


@pytest.mark.slow
def test_processes_through_a_small_cache(eight, tmp_path: Path) -> None:
    """Three processes read random windows through a cache that holds four of eight shards."""
    command = [sys.executable, "-c", READERS, eight.server.address, str(tmp_path / "cache"), str(4 * eight.bytes + 100)]
    readers = [
        subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for seed in range(3)
    ]
    for reader in readers:
        out, errors = reader.communicate(timeout=120)
        assert (out, reader.returncode) == ("done\n", 0), errors
    held_bytes = sum(path.stat().st_size for path in (tmp_path / "cache" / "stores").glob("*.tok"))
    assert held_bytes <= 4 * eight.bytes + 100
