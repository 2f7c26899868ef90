"""Arrow files and streams, and parquet files, as pyarrow writes them: any columns, from any row on, damaged or not."""

import sys
from pathlib import Path

import pytest

from minigpt.config import RequestError, SourceConfig
from minigpt.data.reading.fields import Fields
from minigpt.data.reading.parquet import arrow_texts, parquet_texts
from minigpt.data.reading.sources import Document, documents, read_documents

pa = pytest.importorskip("pyarrow")
ipc = pytest.importorskip("pyarrow.ipc")
pq = pytest.importorskip("pyarrow.parquet")
feather = pytest.importorskip("pyarrow.feather")

TEXTS = ["one\nline", " ", "naïve \U0001f600 日本", "", "x" * 3000, "tab\t\r\n", "last"]


def write(path: Path, columns: dict, rows: int = 3) -> Path:
    """As a stream for .ipc (what the `datasets` library keeps), as Feather for .feather, else as a file."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows)
    elif path.suffix == ".feather":
        feather.write_feather(table, str(path), chunksize=rows, compression="zstd")
    else:
        make = ipc.new_stream if path.suffix == ".ipc" else ipc.new_file
        with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)
    return path


def read(path: Path, **options) -> list[str]:
    return list(read_documents(SourceConfig(path=str(path), **options), path.parent))


def refused(path: Path, **options) -> str:
    with pytest.raises(RequestError) as caught:
        read(path, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


SUFFIXES = [".arrow", ".ipc", ".feather", ".parquet"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_every_row_from_any_row_on(suffix: str, kind: pa.DataType, tmp_path: Path) -> None:
    path = write(tmp_path / f"a{suffix}", {"id": range(len(TEXTS)), "text": pa.array(TEXTS, kind), "more": TEXTS})
    reader = parquet_texts if suffix == ".parquet" else arrow_texts
    for start in range(len(TEXTS) + 2):
        assert list(reader(path, Fields(), start)) == list(enumerate(TEXTS))[start:]
    source = SourceConfig(path=str(path))
    found = list(documents(source, tmp_path, None))
    assert found[1] == Document(TEXTS[2], f"{path} row 3", False, (0, 2))
    for at, document in enumerate(found):
        assert list(documents(source, tmp_path, None, start=document.place)) == found[at:]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_templates_take_any_scalar(suffix: str, tmp_path: Path) -> None:
    columns = {"title": ["A", None], "n": [1, None], "score": [0.5, 2.0], "ok": [True, False], "tags": [["x"], []]}
    path = write(tmp_path / f"a{suffix}", columns)
    template = "{title}|{n}|{score}|{ok}|{title}"
    assert read(path, template=template) == ["A|1|0.5|True|A", "||2.0|False|"]
    assert "column 'tags' holds list<" in refused(path, template="{tags}")
    message = refused(path, template="{title} {body}")
    assert f"{path} has no column 'body' (its columns: title, n, score, ok, tags)" in message
    assert "set the source's `field`" in refused(path)
    assert "column 'n' holds no text but int64" in refused(path, field="n")
    assert "row 2: column 'title' is null" in refused(path, field="title")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_bytes_that_are_not_utf8(suffix: str, tmp_path: Path) -> None:
    values = pa.array([b"fine", b"caf\xe9"]).view(pa.string())
    path = write(tmp_path / f"a{suffix}", {"text": values})
    assert f"{path} row 2 is not UTF-8 text: byte 3 of 'text'" in refused(path)
    assert read(path, errors="replace") == ["fine", "caf\ufffd"]


@pytest.mark.parametrize("suffix", [".arrow", ".ipc", ".feather"])
def test_a_truncated_file_is_one_sentence_wherever_it_ends(suffix: str, tmp_path: Path) -> None:
    whole = write(tmp_path / f"whole{suffix}", {"text": TEXTS * 9}, rows=len(TEXTS) * 9).read_bytes()
    path = tmp_path / f"cut{suffix}"
    for length in [1, 5, 12, *range(30, len(whole) - 9, max(1, len(whole) // 30))]:
        path.write_bytes(whole[:length])
        assert f"{path} is a damaged or incomplete Arrow file" in refused(path)


def test_offsets_that_lead_out_of_the_file_are_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", {"text": ["abc", "def"]})
    whole, offsets = path.read_bytes(), pa.array([0, 3, 6], pa.int32()).buffers()[1].to_pybytes()[:12]
    assert whole.count(offsets) == 1
    path.write_bytes(whole.replace(offsets, offsets[:8] + b"\0\0\0\x70"))
    assert f"{path} is a damaged or incomplete Arrow file" in refused(path)


def test_the_first_feather_format_and_no_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.feather"
    path.write_bytes(b"FEA1" + bytes(100))
    assert "first format" in refused(path)
    path = write(tmp_path / "a.arrow", {"text": ["x"]})
    twice = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["text", "text"])
    assert "has 2 columns of the name 'text'" in refused(write(tmp_path / "b.arrow", twice))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert refused(path).endswith('is an Arrow file, which needs pyarrow: pip install "minigpt[parquet]"')


def test_a_folder_that_the_datasets_library_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "saved"))
    assert read(tmp_path / "saved") == [text for text in TEXTS if text.strip()]
