"""Tables, templates and compressed files as sources of text, and every kind read from any place in it."""

import csv
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.config import DataConfig, RequestError, SourceConfig
from minigpt.data.preparing.splits import iter_training_text
from minigpt.data.reading import text as text_module
from minigpt.data.reading.fields import Fields
from minigpt.data.reading.sources import Document, documents, file_count, identity, read_documents, source_files
from minigpt.data.reading.tables import csv_texts, tsv_texts

SEPARATOR = "<|endoftext|>"


def read(path: Path | str, **options: object) -> list[str]:
    return list(read_documents(SourceConfig(path=str(path), **options), Path(path).parent))  # type: ignore[arg-type]


def refused(path: Path, **options: object) -> str:
    """The one sentence."""
    with pytest.raises(RequestError) as caught:
        read(path, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def zstd(content: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(content)


# --- CSV and TSV

CELLS = st.text(st.sampled_from('ab,;\t\n"\u2028é '), max_size=6)


@given(st.lists(st.tuples(CELLS, CELLS), max_size=6), st.sampled_from(["\n", "\r\n"]), st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_what_the_library_writes_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], end: str, chunk: int
) -> None:
    folder = tmp_path_factory.mktemp("csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "CHUNK_BYTES", chunk)  # borders everywhere
        for reader, name, delimiter in ((csv_texts, "a.csv", ","), (tsv_texts, "a.tsv", "\t")):
            written = io.StringIO()
            writer = csv.writer(written, delimiter=delimiter, lineterminator=end)
            writer.writerows([("id", "text"), *rows])
            path = write(folder / name, written.getvalue())
            assert [found for _, found in reader(path, Fields())] == [row[1] for row in rows]


def test_csv_and_tsv(tmp_path: Path) -> None:
    table = 'title,text\r\nOne,"first, and\nsecond ""line"""\r\n\r\n,\r\nTwo,plain\r\n'
    for name, content in (
        ("a.csv", table.encode()),
        ("b.CSV.gz", gzip.compress(table.encode())),
        ("c.csv", b"\xef\xbb\xbf" + table.encode()),
    ):
        path = write(tmp_path / name, content)
        assert read(path) == ['first, and\nsecond "line"', "plain"]
        assert read(path, field="title") == ["One", "Two"]
        assert read(path, template="{title}: {text}!") == ['One: first, and\nsecond "line"!', ": !", "Two: plain!"]
    assert read(write(tmp_path / "a.tsv", "text\tid\na, b\t1\n")) == ["a, b"]
    long = "x" * 200_000  # more than the csv module takes unless it is told otherwise
    assert read(write(tmp_path / "long.csv", f"text\n{long}\n")) == [long]


BAD_TABLES = [
    ("columns.csv", "title,body\na,b\n", "has no column 'text' (its columns: title, body); set the source's `field`"),
    ("short.csv", "id,text\n1,a\n2\n", "row 2 (line 3) has 1 fields, but the header has 2"),
    ("long.csv", "id,text\n1,a\n2,b,c\n", "row 2 (line 3) has 3 fields, but the header has 2"),
    ("open.csv", 'text\n"never closed\n', "is no CSV file as of line 2 (unexpected end of data)"),
    ("quote.tsv", 'text\n"a"b\n', "is no TSV file as of line 2"),
    ("twice.csv", "text,text\na,b\n", "has 2 columns of the name 'text'"),
    ("latin1.csv", b"text\ncaf\xe9\n", "is not UTF-8 text: byte 8 (0xe9)"),
    ("nul.csv", b"text\na\0b\n", "is binary, not text: byte 6 is NUL"),
    ("utf16.csv", "text\nabc\n".encode("utf-16"), "looks like UTF-16"),
    ("blank.csv", "\n\n", "has no column 'text' (its columns: none)"),
]


@pytest.mark.parametrize(("name", "content", "sentence"), BAD_TABLES, ids=[name for name, _, _ in BAD_TABLES])
def test_tables_that_are_none(name: str, content: str | bytes, sentence: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, content)
    message = refused(path)
    assert str(path) in message and sentence in message


# --- Templates


def test_a_template_over_json_lines(tmp_path: Path) -> None:
    rows = [{"q": "2+2", "a": 4, "n": None, "odd name:x": True}, {"q": "", "a": 0.5, "n": "", "odd name:x": False}]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert read(path, template="Q: {q}\nA: {a}{n}") == ["Q: 2+2\nA: 4", "Q: \nA: 0.5"]
    assert read(path, template="{{{q}}}{q}") == ["{2+2}2+2", "{}"]
    message = refused(path, template="{q} {answer}")
    assert message.startswith(f"{path} line 1 has no field 'answer' (its fields: q, a, n, odd name:x)")
    assert message.endswith("mend the source's `template`")
    path = write(tmp_path / "b.jsonl", '{"q": [1, 2]}')
    assert "line 1: field 'q' is a list, which a template cannot" in refused(path, template="{q}")


@pytest.mark.parametrize("template", ["plain", "{q", "}", "{}", "{q!r}", "{q:>5}"])
def test_templates_that_are_none(template: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"q": "x"}')
    assert f"template={template!r}" in refused(path, template=template)
    assert "no effect" in refused(write(tmp_path / "a.txt", "x"), template="{q}")


def test_many_columns_are_not_all_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ",".join(f"c{number}" for number in range(1000)) + "\n")
    assert "c19 and 980 more)" in refused(path)


# --- Zstandard


def test_zstandard_is_recognised_by_its_bytes(tmp_path: Path) -> None:
    text = "naïve\n" * 100_000
    lines = "".join(json.dumps({"text": f"{number}"}) + "\n" for number in range(9))
    packed = zstd(text.encode())
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    for name, content in (
        ("a.txt.zst", packed),
        ("b.txt", packed),
        ("two.txt.zst", zstd(text[:7].encode()) + zstd(text[7:].encode())),
        ("skip.txt.zst", skippable + packed + skippable),
    ):
        assert read(write(tmp_path / name, content)) == [text]
    assert read(write(tmp_path / "a.jsonl.zst", zstd(lines.encode()))) == [f"{number}" for number in range(9)]
    assert read(write(tmp_path / "a.csv.zst", zstd(b"text\na\n"))) == ["a"]
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "a.csv.zst", zstd(b"text\na\n"))
    write(folder / "b.txt.zst", zstd(b"b"))
    assert read(folder) == ["a", "b"]


def test_a_truncated_zstandard_file_is_one_sentence_wherever_it_ends(tmp_path: Path) -> None:
    packed = zstd(bytes(range(1, 128)) * 3000) + zstd(b"second frame " * 99)
    border = len(zstd(bytes(range(1, 128)) * 3000))
    path = tmp_path / "cut.txt.zst"
    for length in range(5, len(packed), 7):
        path.write_bytes(packed[:length])
        if length != border:
            assert f"{path} is a damaged or incomplete Zstandard file" in refused(path)
    path.write_bytes(packed[: border + 2] + b"!" + packed[border + 3 :])
    assert "damaged or incomplete Zstandard" in refused(path)
    assert "is named .zst but is not a Zstandard file" in refused(write(path, "plain"))
    assert "is binary" in refused(write(path, zstd(b"some text\0")))


def test_without_zstandard_the_package_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.txt.zst", zstd(b"x"))
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    assert refused(path).endswith('needs zstandard: pip install "minigpt[zstd]"')


# --- errors=replace


def test_errors_replace(tmp_path: Path) -> None:
    for name, content in (
        ("a.txt", b"caf\xe9 \xff"),
        ("a.jsonl", b'{"text": "caf\xe9 \xff"}'),
        ("a.csv", b"text\ncaf\xe9 \xff\n"),
    ):
        path = write(tmp_path / name, content)
        assert "errors=replace" in refused(path)
        assert "not UTF-8" in refused(path, errors="strict")
        assert read(path, errors="replace") == ["caf\ufffd \ufffd"]
    path = write(tmp_path / "b.jsonl", '{"text": "half \\ud83d, whole \\ud83d\\ude00"}')
    assert "half of a surrogate pair" in refused(path)
    assert read(path, errors="replace") == ["half \ufffd, whole \U0001f600"]
    assert "is binary" in refused(write(tmp_path / "nul.txt", b"some text\0"), errors="replace")
    with pytest.raises(RequestError, match="errors='replace' has no effect"):
        source_files(SourceConfig(path=str(write(tmp_path / "ids.bin", b"abcd")), errors="replace"), tmp_path)


# --- Places


def kinds(folder: Path) -> Iterator[tuple[str, SourceConfig]]:
    rows = [{"text": text, "n": number} for number, text in enumerate(["a", " ", "b", "", "c", "d"])]
    texts = f"one{SEPARATOR} {SEPARATOR}two{SEPARATOR}{SEPARATOR}three"
    files = {
        "text": ("txt", texts),
        "stream": ("txt", "one text"),
        "jsonl": ("jsonl", "\n\n".join(map(json.dumps, rows))),
        "csv": ("csv", "text,n\n" + "".join(f"{row['text']},{row['n']}\n" for row in rows)),
    }
    for kind, (suffix, content) in files.items():
        (folder / kind).mkdir()
        for name in ("x", "y", "z"):
            write(folder / kind / f"{name}.{suffix}", content.replace("o", name))
        yield kind, SourceConfig(path=str(folder / kind))
    yield "own separator", SourceConfig(path=str(folder / "text"), separator="e")
    yield "literal", SourceConfig(text=texts)
    yield "demo", SourceConfig(demo="stories", documents=4)
    yield "template", SourceConfig(path=str(folder / "jsonl"), template="{n}: {text}")


def test_every_kind_is_read_from_any_place(tmp_path: Path) -> None:
    """From the place of any document on, what follows is what follows in a reading of everything."""
    for kind, source in kinds(tmp_path):
        whole = list(documents(source, tmp_path, SEPARATOR))
        places = [document.place for document in whole]
        assert places == sorted(set(places)), kind
        assert places[-1][0] + 1 == file_count(source, tmp_path)
        for at, place in enumerate(places):
            assert list(documents(source, tmp_path, SEPARATOR, start=place)) == whole[at:], (kind, place)
            after = (place[0], place[1] + 1)
            assert list(documents(source, tmp_path, SEPARATOR, start=after)) == whole[at + 1 :], (kind, after)
        assert list(documents(source, tmp_path, SEPARATOR, start=(99, 0))) == []
        if file_count(source, tmp_path) == 3:
            odd = list(documents(source, tmp_path, SEPARATOR, files=lambda number: number != 1))
            assert odd == [document for document in whole if document.place[0] != 1]


def test_blank_records_count_in_places(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '\n{"text": "a"}\n{"text": " "}\n\n{"text": "b"}\n')
    found = list(documents(SourceConfig(path=str(path)), tmp_path, None))
    assert [(document.text, document.place) for document in found] == [("a", (0, 1)), ("b", (0, 4))]
    assert found[1] == Document("b", f"{path} line 5", False, (0, 4))


def test_files_that_are_not_wanted_are_not_opened(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"text": "a"}\n')
    write(tmp_path / "b.jsonl", "no JSON")
    source = SourceConfig(path=str(tmp_path))
    assert [found.text for found in documents(source, tmp_path, None, files=lambda number: number == 0)] == ["a"]
    with pytest.raises(RequestError, match=r"b\.jsonl line 1 is not JSON"):
        list(documents(source, tmp_path, None, start=(1, 0)))
    bad_start = write(tmp_path / "a.jsonl", 'no JSON\n{"text": "a"}\n')
    assert [found.text for found in documents(source, tmp_path, None, start=(0, 1), files=lambda n: n == 0)] == ["a"]
    assert "line 1 is not JSON" in refused(bad_start)


def test_identity_is_of_the_content_alone(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.jsonl", '{"text": "a"}'), write(tmp_path / "b.jsonl", '{"text": "a"}')

    def of(path: Path, **options: object) -> dict[str, object]:
        return identity(SourceConfig(path=str(path), **options), tmp_path)  # type: ignore[arg-type]

    same = of(one)
    assert of(two) == of(one, name="mine", weight=2.0) == of(one, repeat=3.0) == of(one, field="text") == same
    assert of(one, errors="strict") == same
    different = [of(one, errors="replace"), of(one, template="{text}"), of(one, template="{text}!"), of(one, field="b")]
    assert all(found not in [same, *different[:at]] for at, found in enumerate(different))


# --- The text that a tokenizer is trained on


def test_a_tokenizer_sees_no_validation_text(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", "".join(json.dumps({"text": f"{name}{n}"}) + "\n" for n in range(4)))
    paths = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]

    def seen(**options: object) -> str:
        data = {"train": paths, "val_fraction": 0.5} | options
        return " ".join(iter_training_text(DataConfig.model_validate(data), tmp_path))

    assert seen() == "a0 a1 a2 a3"
    weighed = [{"path": path, "weight": 1} for path in paths]
    assert seen(train=weighed) == "a0 a1 b0 b1"
    assert seen(train=weighed, val=paths[0]) == "a0 a1 a2 a3 b0 b1 b2 b3"
    assert seen(train=weighed, val_fraction=0) == "a0 a1 a2 a3 b0 b1 b2 b3"
    assert seen(streaming=True) == "a0 a1 a2 a3 b0 b1 b2 b3"
    assert seen(streaming=True, val_documents=3) == "a3 b0 b1 b2 b3"
    assert seen(streaming=True, val_documents=3, train=weighed) == "a3 b3"
