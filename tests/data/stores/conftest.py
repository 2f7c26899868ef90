"""Prepared folders of known tokens, and stores that give them: a local HTTP server with faults, and memory://."""

import hashlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minigpt.data.preparing.folder import META, FolderMeta, ShardEntry, SplitEntry
from minigpt.data.preparing.shards import ShardWriter, TokenShard
from minigpt.data.stores import remote
from minigpt.data.stores.shard_cache import ShardCache

EOT = 0
VOCABULARY = 300


def random_documents(seed: int, count: int, longest: int = 40) -> list[np.ndarray]:
    """Documents of random ids, each ended by EOT, which is nowhere else."""
    draw = np.random.default_rng(seed)
    return [np.append(draw.integers(1, VOCABULARY, draw.integers(0, longest)), EOT) for _ in range(count)]


def write_folder(
    folder: Path, documents: list[np.ndarray], shard_tokens: int, val_from: int | None = None, **meta
) -> np.ndarray:
    """Write a folder whose validation split begins with document `val_from`; all its ids."""
    folder.mkdir(parents=True)
    writer = ShardWriter(folder, VOCABULARY, "fp", shard_tokens)
    ids = np.concatenate(documents)
    starts = np.cumsum([0, *map(len, documents)])[:-1]
    writer.append(ids, starts)
    entries = []
    for path in writer.close():
        shard = TokenShard(path)
        facts = (path.name, shard.n_tokens, shard.n_documents, path.stat().st_size, shard.content_sha256)
        entries.append(ShardEntry(*facts))

    def split(begin: int, end: int) -> SplitEntry:
        digest = hashlib.sha256(ids[begin:end].astype("<u4").tobytes()).hexdigest()
        return SplitEntry(
            begin=begin, end=end, documents=int(((starts >= begin) & (starts < end)).sum()), sha256=digest
        )

    splits = {"all": split(0, len(ids))}
    if val_from is not None:
        cut = int(starts[val_from])
        splits = {"train": split(0, cut), "val": split(cut, len(ids))}
    known = {"vocab_size": VOCABULARY, "tokenizer": "fp", "dtype": "uint16", "eot": EOT}
    (folder / META).write_text(FolderMeta(**known | meta, shards=tuple(entries), splits=splits).to_json())
    return ids


class Server(http.server.ThreadingHTTPServer):
    """Serves the files of `folder`, without byte ranges.

    `faults` is what goes wrong with the next answers to requests for shards: a status, "stall", "cut" (half the body)
    or "flip" (one wrong bit). `requests` has the names that were asked for.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.faults: list[int | str] = []
        self.requests: list[str] = []
        self.stall_seconds = 3.0
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, name = self.server, self.path.lstrip("/")
        server.requests.append(name)
        path = server.folder / name
        if not path.is_file():
            self.send_error(404)
            return
        fault = server.faults.pop(0) if server.faults and name.endswith(".tok") else None
        if isinstance(fault, int):
            self.send_error(fault)
            return
        body = path.read_bytes()
        if fault == "flip":
            body = body[:4097] + bytes([body[4097] ^ 1]) + body[4098:]  # within the ids
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault in ("stall", "cut") else body)
        if fault == "stall":
            time.sleep(server.stall_seconds)
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[Path], Server]]:
    """Starts a server of a folder."""
    servers: list[Server] = []

    def start(folder: Path) -> Server:
        servers.append(Server(folder))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def in_memory() -> Iterator[Callable[[Path], str]]:
    """Copies a folder into fsspec's memory:// and gives its address."""
    files = pytest.importorskip("fsspec").filesystem("memory")
    made: list[str] = []

    def put(folder: Path) -> str:
        made.append(f"/{folder.name}-{len(made)}")
        for path in folder.iterdir():
            files.pipe_file(f"{made[-1]}/{path.name}", path.read_bytes())
        return f"memory:/{made[-1]}"

    yield put
    for root in made:
        files.rm(root, recursive=True)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without the long pauses."""
    monkeypatch.setattr(remote, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(remote, "TIMEOUT_SECONDS", 0.5)


@pytest.fixture
def folders() -> SimpleNamespace:
    """The functions of this file that make folders."""
    return SimpleNamespace(write=write_folder, documents=random_documents, eot=EOT, vocabulary=VOCABULARY)


@pytest.fixture
def tokenizer() -> SimpleNamespace:
    """All that reading shards asks of a tokenizer."""
    return SimpleNamespace(fingerprint="fp", vocab_size=VOCABULARY, eot_id=EOT)


@pytest.fixture
def shards(tmp_path: Path) -> ShardCache:
    """A cache with room for everything."""
    return ShardCache(tmp_path / "cache", 10**9)
