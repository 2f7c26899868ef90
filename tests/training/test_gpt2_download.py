"""GPT-2's vocabulary is downloaded once, checked, and missed in one sentence; a local server plays the real one."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import minigpt.training.tokenizers as tokenizers
from minigpt.config import WorkError

FILES = {"encoder.json": b'{"a": 0}', "vocab.bpe": b"#version: 0.2\n"}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "served"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(tokenizers, "GPT2_URL", f"http://127.0.0.1:{server.server_port}/")
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    monkeypatch.setattr(tokenizers, "GPT2_FILES", hashes)
    yield folder
    server.shutdown()
    server.server_close()


def test_both_files_arrive_once(served: Path) -> None:
    folder = tokenizers.download_gpt2()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    for name in FILES:
        (served / name).unlink()  # a second call needs no server
    assert tokenizers.download_gpt2() == folder


def test_a_wrong_file_is_refused_and_leaves_nothing(served: Path) -> None:
    (served / "encoder.json").write_bytes(b"changed")
    with pytest.raises(WorkError, match=r"set tokenizer\.path to a folder with encoder\.json and vocab\.bpe"):
        tokenizers.download_gpt2()
    assert list((tokenizers.cache_dir() / "gpt2").iterdir()) == []
