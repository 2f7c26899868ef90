"""Text that is none, given to a command: one sentence that names the file, status 2, and nothing left in the cache."""

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import pytest

GOOD = '{"text": "the quick fox jumps over a lazy dog"}\n' * 50


def parquet(text: str = "text") -> bytes:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    sink = io.BytesIO()
    pq.write_table(pa.table({text: ["the quick fox"] * 100}), sink)
    return sink.getvalue()


def zstd() -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(GOOD.encode())


BAD: list[tuple[str, Callable[[], bytes], str]] = [
    ("empty.txt", lambda: b"", "is empty"),
    ("blank.txt", lambda: b" \n\t\n", "holds no text"),
    ("header-only.csv", lambda: b"text\n", "holds no text"),
    (
        "no-such-field.jsonl",
        lambda: GOOD.encode() + b'{"body": "x"}\n',
        "line 51 has no field 'text' (its fields: body)",
    ),
    ("no-such-column.csv", lambda: b"body,id\na,1\n", "has no column 'text' (its columns: body, id)"),
    ("no-such-column.parquet", lambda: parquet("body"), "has no column 'text' (its columns: body)"),
    ("program.txt", lambda: b"\x7fELF\x02\x01\x01" + bytes(90), "is binary, not text: byte 7 is NUL"),
    ("cut.txt.gz", lambda: gzip.compress(GOOD.encode())[:-9], "damaged or incomplete gzip file"),
    ("cut.jsonl.gz", lambda: gzip.compress(GOOD.encode())[:60], "damaged or incomplete gzip file"),
    ("cut.jsonl.zst", lambda: zstd()[:-3], "damaged or incomplete Zstandard file"),
    ("cut.parquet", lambda: parquet()[:-7], "damaged or incomplete parquet file"),
    ("latin1.txt", lambda: b"a" * 2000 + b"caf\xe9 au lait", "is not UTF-8 text: byte 2003 (0xe9)"),
    ("latin1.jsonl", lambda: GOOD.encode() + b'{"text": "\xe9"}\n', "line 51 is not UTF-8 text: byte 10 of the line"),
]


@pytest.mark.parametrize(("name", "content", "said"), BAD, ids=[name for name, _, _ in BAD])
def test_one_sentence_and_nothing_left(
    run, name: str, content: Callable[[], bytes], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    path.write_bytes(content())
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine.yaml").write_text(
        f"data: {{train: {path}}}\ntokenizer: {{kind: file, path: {_tokenizer(tmp_path)}}}\n"
        "model: {context_length: 8}\n"
        "training: {max_steps: 2, batch_tokens: 8}\n"
    )
    for command in (("data", "prepare"), ("data", "show"), ("train",)):
        found = run(
            *command, tmp_path / "mine.yaml", *(["--run-dir", tmp_path / "run"] if command == ("train",) else [])
        )
        assert found.status == 2 and said in found.complaint and str(path) in found.complaint
    left = [
        entry for entry in (tmp_path / "cache").rglob("*") if entry.is_file() and entry.suffix not in (".lock", ".json")
    ]
    assert left == [] and not [*(tmp_path / "cache").rglob("*.work")]
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_replaced_on_request(run, tmp_path: Path) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes(b"caf\xe9 " * 100)
    (tmp_path / "mine.yaml").write_text(
        f"data: {{train: {{path: {path}, errors: replace}}, val_fraction: 0}}\n"
        f"tokenizer: {{kind: file, path: {_tokenizer(tmp_path)}}}\nmodel: {{context_length: 8}}\n"
    )
    found = run("data", "show", tmp_path / "mine.yaml", "training.batch_tokens=8", "--json").json
    assert found["splits"]["train"]["bytes"] == 100 * len("caf\ufffd ".encode())


def _tokenizer(folder: Path) -> Path:
    from minigpt.tokenizer import train_bpe

    place = folder / "tokenizer"
    if not place.exists():
        place.mkdir()
        train_bpe([GOOD], vocab_size=270, pattern="gpt2", special_tokens=["<|endoftext|>"]).save(place)
    return place
