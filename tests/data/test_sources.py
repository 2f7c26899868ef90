"""Reading text: exactly what is in the files, and one sentence for everything that is not text."""

import gzip
import json
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.config import RequestError, SourceConfig
from minigpt.data.reading import sources, text
from minigpt.data.reading.sources import is_token_source, read_documents
from minigpt.data.reading.text import split_documents

SEPARATOR = "<|endoftext|>"


def read(source: str | SourceConfig | Path, cache: Path, separator: str | None = None) -> list[str]:
    return list(read_documents(source if isinstance(source, SourceConfig) else str(source), cache, separator))


def refused(source: str | SourceConfig | Path, cache: Path) -> str:
    """The one sentence."""
    with pytest.raises(RequestError) as caught:
        read(source, cache)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


TEXTS = ["a\r\nb\rc\n", "é", "naïve \U0001f600 日本", "\ufeffinside\ufeff", "tab\t\u2028\x0c\x1f", " x"]


@pytest.mark.parametrize("content", TEXTS)
@pytest.mark.parametrize("chunk", [1, 2, 3, 1 << 20])
def test_text_is_read_as_it_is(content: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "CHUNK_BYTES", chunk)  # multi-byte characters on every border
    (tmp_path / "a.txt").write_bytes(content.encode())
    with gzip.open(tmp_path / "b.txt.gz", "wb") as file:
        file.write(content.encode())
    (tmp_path / "c.dat").write_bytes(gzip.compress(content.encode()))
    expected = [content.removeprefix("\ufeff")]
    for name in ("a.txt", "b.txt.gz", "c.dat"):
        assert read(tmp_path / name, tmp_path) == expected
    assert read(SourceConfig(text=content), tmp_path) == [content]


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert read(tmp_path / "a.txt", tmp_path) == ["hello"]
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "hello"}\n')
    assert read(tmp_path / "a.jsonl", tmp_path) == ["hello"]


def test_tinyshakespeare(test_data, tmp_path: Path) -> None:
    (text,) = read(test_data("tinyshakespeare/input.txt"), tmp_path)
    assert len(text) == 1_115_394
    assert len(set(text)) == 65


@given(st.text(st.sampled_from("<|endoftxab\n"), max_size=80), st.lists(st.integers(1, 7), max_size=40))
@settings(max_examples=200, deadline=None)
def test_separators_are_found_across_borders(middle: str, cuts: list[int]) -> None:
    whole = SEPARATOR.join([middle, "x", middle[:3], ""]) + middle[:5]
    chunks, at = [], 0
    for cut in cuts:
        chunks.append(whole[at : at + cut])
        at += cut
    chunks.append(whole[at:])
    assert [piece for piece, _ in split_documents(chunks, SEPARATOR)] == whole.split(SEPARATOR)
    assert [piece for piece, _ in split_documents(chunks, None)] == [whole]


def test_separators_in_a_file_divide_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"one\n{SEPARATOR}\ntwo{SEPARATOR}{SEPARATOR}\n")
    assert read(path, tmp_path, SEPARATOR) == ["one\n", "\ntwo"]  # what is only white space is no document
    assert read(path, tmp_path) == [path.read_text()]


@given(st.lists(st.sampled_from(["a", "b\n", "\n", "%%", "x y"]), max_size=12), st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_a_separator_of_whole_lines_is_found_across_borders(parts: list[str], size: int) -> None:
    whole = "".join(parts) + "end"
    chunks = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert [piece for piece, _ in split_documents(chunks, "\n%%\n")] == whole.split("\n%%\n")
    # The last line of a file may lack its line break.
    assert [piece for piece, _ in split_documents([*chunks, "\n%%"], "\n%%\n")] == whole.split("\n%%\n")


STORIES = f"\nOnce there was Ben.\n\nHe sang.\n{SEPARATOR}\nOnce there was Ann.\n{SEPARATOR}\nA third."


@pytest.mark.parametrize("end", ["", "\n", f"\n{SEPARATOR}", f"\n{SEPARATOR}\n"])
@pytest.mark.parametrize("special", [SEPARATOR, None])
def test_a_separator_of_ones_own(special: str | None, end: str, tmp_path: Path) -> None:
    path = write(tmp_path, "stories.txt", (STORIES + end).encode())
    source = SourceConfig(path=str(path), separator=f"\n{SEPARATOR}\n")
    first = "\nOnce there was Ben.\n\nHe sang."
    last = "A third.\n" if end == "\n" else "A third."
    assert read(source, tmp_path, special) == [first, "Once there was Ann.", last]
    paragraphs = ["\nOnce there was Ben.", f"He sang.\n{SEPARATOR}\nOnce there was Ann.\n{SEPARATOR}\nA third.{end}"]
    source = SourceConfig(path=str(path), separator="\n\n")
    if special is None:
        assert read(source, tmp_path) == paragraphs
    else:  # what the tokenizer knows as its special token is part of no document
        found = read(source, tmp_path, special)
        assert len(found) == 4 and SEPARATOR not in "".join(found)
    assert read(SourceConfig(text="a%%b", separator="%%"), tmp_path, special) == ["a", "b"]


def test_a_separator_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        write(tmp_path, name, b"one%%two" if name == "b.txt" else b"three")
    assert read(SourceConfig(path=f"{tmp_path}/*.txt", separator="%%"), tmp_path) == ["three", "one", "two"]
    said = refused(SourceConfig(path=str(tmp_path / "a.txt"), separator="\n%%\n"), tmp_path)
    assert said == f"separator='\\n%%\\n' has no effect: it is nowhere in {tmp_path}/a.txt"
    write(tmp_path, "c.jsonl", b'{"text": "a%%b"}')
    assert "is no plain text" in refused(SourceConfig(path=str(tmp_path / "c.jsonl"), separator="%%"), tmp_path)


def test_classic_books(test_data, tmp_path: Path) -> None:
    books = read(test_data("classic_books/val.txt.gz"), tmp_path, SEPARATOR)
    assert len(books) == 3
    assert all("# Title:" in book[:20] for book in books)


def test_folders_and_globs_in_order_of_names(tmp_path: Path) -> None:
    for name, content in [("b.txt", "B"), ("a/z.txt", "AZ"), ("a/y.jsonl", '{"text": "AY"}'), (".hidden.txt", "H"),
                          (".git/x.txt", "H"), ("notes.md", "M"), ("c.txt.gz", None), ("empty.txt", "")]:  # fmt: skip
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(b"C")) if content is None else path.write_text(content)
    folder = tmp_path / "in"
    assert read(folder, tmp_path) == ["AY", "AZ", "B", "C"]
    assert read(folder / "*.md", tmp_path) == ["M"]
    assert read(f"{folder}/**/*.txt", tmp_path) == ["AZ", "B"]
    assert read(f"{folder}/.*.txt", tmp_path) == ["H"]
    (folder / "odd[1].txt").write_text("odd")  # a name that looks like a pattern but is there
    assert read(folder / "odd[1].txt", tmp_path) == ["odd"]


def test_relative_and_home_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("A")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for given_as in ("a.txt", "*.txt", "~/a.txt", "~/*.txt", "./?.txt"):
        assert read(given_as, tmp_path) == ["A"]


def test_jsonl(tmp_path: Path) -> None:
    rows = [{"text": "one\nline"}, {"text": " "}, {"text": "two \u2028 lines", "id": 3}, {"text": ""}]
    content = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    for name in ("a.jsonl", "b.jsonl.gz"):
        assert read(tmp_path / name, tmp_path) == ["one\nline", "two \u2028 lines"]
    (tmp_path / "q.jsonl").write_text('{"question": "Q", "text": 5}\n')
    assert read(SourceConfig(path=str(tmp_path / "q.jsonl"), field="question"), tmp_path) == ["Q"]


def test_gsm8k_questions(test_data, tmp_path: Path) -> None:
    source = SourceConfig(path=str(test_data("gsm8k/test.jsonl")), field="question")
    assert sum(1 for _ in read_documents(source, tmp_path)) == 1319


def test_demo_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("minigpt.data.demo")
    fake.GRAMMAR_VERSION = 1
    fake.story = lambda seed, index: f"story {seed} {index}"
    fake.dialogue_text = lambda seed, index: f"dialogue {seed} {index}"
    monkeypatch.setitem(sys.modules, "minigpt.data.demo", fake)
    assert read(SourceConfig(demo="stories", documents=2, seed=4), tmp_path) == ["story 4 0", "story 4 1"]
    assert next(read_documents("demo:dialogues", tmp_path)) == "dialogue 0 0"
    assert sum(1 for _ in read_documents("demo:stories", tmp_path)) == sources.DEFAULT_DEMO_DOCUMENTS


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def gz(content: bytes) -> bytes:
    return gzip.compress(content)


LONG = b"x" * 3_000_000

BAD_FILES = [
    ("empty.txt", b"", "is empty"),
    ("nul.txt", b"abc\0def", "is binary, not text: byte 3 is NUL"),
    ("late-nul.txt", LONG + b"\0", "byte 3000000 is NUL"),
    ("latin1.txt", b"caf\xe9 au lait", r"is not UTF-8 text: byte 3 \(0xe9\)"),
    ("late.txt", LONG + b"\xff", r"byte 3000000 \(0xff\)"),
    ("cut.txt", LONG[:-1] + "é".encode()[:1], r"byte 2999999 \(0xc3\)"),
    ("surrogate.txt", b"a\xed\xa0\x80", r"is not UTF-8 text: byte 1"),
    ("utf16.txt", "hello there".encode("utf-16"), "looks like UTF-16"),
    ("utf16le.txt", "hello there".encode("utf-16-le"), "looks like UTF-16"),
    ("utf16be.jsonl", '{"text": "hello there"}'.encode("utf-16-be"), "looks like UTF-16"),
    ("cut.txt.gz", gz(LONG)[:-20], "damaged or incomplete gzip"),
    ("flipped.txt.gz", gz(b"hello")[:-6] + b"\0" + gz(b"hello")[-5:], "damaged or incomplete gzip"),
    ("plain.txt.gz", b"not compressed", "named .gz but is not a gzip"),
    ("inner.txt.gz", gz(b"ab\xff"), r"byte 2 \(0xff\)"),
    ("a.json", b'[{"text": "x"}]', "give JSON lines"),
    ("bad.jsonl", b'{"text": "x"}\n{"text": \n', "line 2 is not JSON"),
    ("deep.jsonl", b"[" * 200_000, "line 1 is not JSON"),
    ("list.jsonl", b'["x"]\n', "line 1 is not a JSON object but list"),
    (
        "missing.jsonl",
        b'{"text": "x"}\n\n{"body": "y", "id": 1}\n',
        r"line 3 has no field 'text' \(its fields: body, id\)",
    ),
    ("number.jsonl", b'{"text": 12}\n', "line 1: field 'text' is not a string but int"),
    ("null.jsonl", b'{"text": null}\n', "is not a string but NoneType"),
    ("surrogate.jsonl", b'{"text": "\\ud800"}\n', "half of a surrogate pair"),
    ("latin1.jsonl", b'{"text": "ok"}\n{"text": "\xe9"}\n', "line 2 is not UTF-8 text: byte 10 of the line"),
    ("cut.jsonl.gz", gz(b'{"text": "x"}\n' * 9)[:-9], "damaged or incomplete gzip"),
    ("ids.npy", b"anything", "holds token ids, not text"),
]


@pytest.mark.parametrize(("name", "content", "sentence"), BAD_FILES, ids=[name for name, _, _ in BAD_FILES])
def test_files_that_are_not_text(name: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(RequestError, match=sentence):
        read(path, tmp_path)
    assert str(path) in refused(path, tmp_path)


def test_places_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert refused(tmp_path / "absent.txt", tmp_path) == f"there is no file or folder {tmp_path}/absent.txt"
    assert "no file matches" in refused(tmp_path / "*.txt", tmp_path)
    assert "no file matches" in refused(tmp_path / "no" / "such" / "*.txt", tmp_path)
    assert "holds no .txt, .jsonl" in refused(tmp_path / "folder", tmp_path)
    (tmp_path / "folder" / "train.bin").write_bytes(b"ab")
    assert "holds no .txt, .jsonl" in refused(tmp_path / "folder", tmp_path)
    (tmp_path / "folder" / "tokens-00000.tok").write_bytes(b"ab")
    (tmp_path / "folder" / "meta.json").write_text("{}")
    assert f"give it as {{shards: {tmp_path}/folder}}" in refused(tmp_path / "folder", tmp_path)
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "absent")
    assert "neither a file nor a folder" in refused(tmp_path / "dangling.txt", tmp_path)
    assert "poems" in refused("demo:poems", tmp_path)
    assert "path is empty" in refused(" ", tmp_path)
    assert "no such user" in refused("~no-such-user/x.txt", tmp_path)
    assert "holds token ids, not text" in refused("s3://bucket/folder", tmp_path)


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "a.txt", b"A")

    def forbidden(*args: object, **kwargs: object) -> None:  # root may read everything, so chmod would prove nothing
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", forbidden)
    assert refused(path, tmp_path) == f"{path} cannot be read: permission denied"


def test_options_without_effect(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", b"A")
    assert "field='body' has no effect" in refused(SourceConfig(path=str(path), field="body"), tmp_path)
    assert "dtype='uint32' has no effect" in refused(SourceConfig(path=str(path), dtype="uint32"), tmp_path)


def test_is_token_source(tmp_path: Path) -> None:
    for name in ("a.bin", "b.npy", "c.txt"):
        write(tmp_path, name, b"abcd")
    assert is_token_source("https://example.org/train_{000001..000103}.bin")
    with pytest.raises(RequestError, match="both text and token files"):
        is_token_source("https://example.org/train.{bin,txt}")
    assert is_token_source(str(tmp_path / "a.bin"))
    assert is_token_source(str(tmp_path / "*.npy"))
    assert is_token_source("https://example.org/shard.bin?download=true")
    for text_source in (str(tmp_path / "c.txt"), str(tmp_path), "demo:stories", "https://example.org/a.txt",
                        SourceConfig(text="a.bin")):  # fmt: skip
        assert not is_token_source(text_source)
    with pytest.raises(RequestError, match="both text and token files"):
        is_token_source(str(tmp_path / "*"))
