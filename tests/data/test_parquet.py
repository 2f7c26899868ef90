"""Parquet files, written by pyarrow itself: every row comes back, memory stays small, and damage is one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

from minigpt.config import DataConfig, RequestError, SourceConfig
from minigpt.data import prepare
from minigpt.data.reading.sources import read_documents
from minigpt.tokenizer import Tokenizer

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

TEXTS = ["one\nline", "naïve \U0001f600 日本", "two  spaces ", "x" * 5000, "tab\t\r\n"]


def write(path: Path, columns: dict, **options) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def read(source: Path | SourceConfig, cache: Path) -> list[str]:
    return list(read_documents(source if isinstance(source, SourceConfig) else str(source), cache))


def refused(source: Path | SourceConfig, cache: Path) -> str:
    with pytest.raises(RequestError) as caught:
        read(source, cache)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
@pytest.mark.parametrize("row_group_size", [1, 2, 1000])
def test_every_row_is_a_document(compression: str, row_group_size: int, tmp_path: Path) -> None:
    texts = [f"{number} {text}" for number in range(100) for text in TEXTS]  # more than are decoded at once
    columns = {"id": list(range(len(texts))), "text": texts, "score": [0.5] * len(texts)}
    path = write(tmp_path / "a.parquet", columns, compression=compression, row_group_size=row_group_size)
    assert read(path, tmp_path) == texts


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
@pytest.mark.parametrize("use_dictionary", [True, False])
def test_kinds_of_text(kind: pa.DataType, use_dictionary: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"body": pa.array(TEXTS, kind)}, use_dictionary=use_dictionary)
    assert read(SourceConfig(path=str(path), field="body"), tmp_path) == TEXTS


def test_blank_rows_are_left_out(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.parquet", {"text": ["", "a", " \n", "b"]}), tmp_path) == ["a", "b"]


def test_in_folders_and_globs_beside_other_kinds(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("b", "c"):
        write(folder / f"{name}.parquet", {"text": [name]})
    (folder / "a.txt").write_text("a")
    (folder / "d.jsonl").write_text('{"text": "d"}\n')
    assert read(folder, tmp_path) == ["a", "b", "c", "d"]
    assert read(folder / "*.parquet", tmp_path) == ["b", "c"]


def test_tokens_end_each_row_and_the_content_is_the_key(tmp_path: Path, cache: Path, bpe: Tokenizer) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["to be", "or not"], "other": ["that", "is"]})
    for field, texts in (("text", ["to be", "or not"]), ("other", ["that", "is"])):
        data = DataConfig.model_validate({"train": {"path": str(path), "field": field}, "val_fraction": 0})
        train = prepare(data, bpe, cache=cache).train
        assert train.tokens(0, len(train)).tolist() == [i for text in texts for i in [*bpe.encode(text), bpe.eot_id]]
    assert len(list((cache / "tokens").glob("*/*.tok"))) == 2


def test_what_is_wrong_with_the_columns_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"body": ["x"], "id": [1], "meta": [{"text": "y"}], "raw": [b"z"]})
    said = refused(path, tmp_path)
    assert said == f"{path} has no column 'text' (its columns: body, id, meta, raw); set the source's `field`"
    for field, kind in (("id", "int64"), ("meta", "struct<text: string>"), ("raw", "binary")):
        message = refused(SourceConfig(path=str(path), field=field), tmp_path)
        assert f"column '{field}' holds no text but {kind}" in message
    path = write(tmp_path / "null.parquet", {"text": ["x", None]})
    assert f"{path} row 2: column 'text' is null" in refused(path, tmp_path)
    path = write(tmp_path / "none.parquet", {"text": pa.array([], pa.string())})
    assert read(path, tmp_path) == []


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    values = pa.array([b"fine", b"caf\xe9"]).view(pa.string())
    path = write(tmp_path / "a.parquet", {"text": values}, store_schema=True)
    assert f"{path} row 2 is not UTF-8 text: byte 3" in refused(path, tmp_path)


def test_a_truncated_file_is_one_sentence_wherever_it_ends(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.parquet", {"text": TEXTS * 20}, row_group_size=10).read_bytes()
    path = tmp_path / "cut.parquet"
    for length in [1, 4, 12, *range(100, len(whole), max(1, len(whole) // 40)), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert f"{path} is a damaged or incomplete parquet file" in refused(path, tmp_path)
    path.write_text("not parquet at all, but long enough to be looked at")
    assert "damaged or incomplete parquet" in refused(path, tmp_path)


def test_a_changed_byte_is_noticed_where_the_file_has_checksums(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": TEXTS}, write_page_checksum=True, compression="none")
    whole = path.read_bytes()
    at = whole.index(b"xxxx") + 100
    path.write_bytes(whole[:at] + b"y" + whole[at + 1 :])
    assert f"{path} is a damaged or incomplete parquet file" in refused(path, tmp_path)


def test_without_pyarrow_the_package_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["x"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert refused(path, tmp_path).endswith('needs pyarrow: pip install "minigpt[parquet]"')


MEASURE = """
import sys
import pyarrow
from pathlib import Path
from minigpt.data.reading.fields import Fields
from minigpt.data.reading.parquet import parquet_texts

count = sum(len(text) for _, text in parquet_texts(Path(sys.argv[1]), Fields()))
print(count, pyarrow.default_memory_pool().max_memory())
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_row_group(tmp_path: Path) -> None:
    """40 MB of text in a single row group: all that is held at once is a few pages (1 MB each) of it."""
    texts = [f"{number:08d}" * 500 for number in range(10_000)]
    path = write(tmp_path / "a.parquet", {"text": texts}, row_group_size=10_000, use_dictionary=False)
    done = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True)
    characters, most = map(int, done.stdout.split())
    assert characters == 40_000_000
    assert most < 12_000_000
