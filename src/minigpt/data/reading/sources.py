"""Where text comes from: literal text, files, folders, globs, HTTP(S), data sets of the hub, demo text, own classes.

A source is a sequence of documents. A text file is one document, or several where it holds a separator: the source's
own (`separator`), and `<|endoftext|>` if the tokenizer has that special token. Each line of a JSONL file is one, each
row of a table (CSV, TSV, parquet, Arrow, the hub), each demo text. Documents of nothing but white space are left out.
Files of a folder or a glob come in the order of their paths. Every source can be read any number of times, and from any
of its documents on.
"""

import hashlib
import importlib
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from pydantic import ValidationError

from minigpt.config import DataConfig, OwnSource, RequestError, SourceConfig
from minigpt.config.extension import Extension
from minigpt.data.preparing.token_files import is_token_file
from minigpt.data.reading.download import DownloadError, Progress, download
from minigpt.data.reading.fields import DEFAULT_FIELD, Fields, has_surrogates
from minigpt.data.reading.files import TABLES, kind_of, local_files
from minigpt.data.reading.hub import MIRROR_VARIABLE
from minigpt.data.reading.hub_datasets import hub_files, hub_identity
from minigpt.data.reading.memo import content_sha256
from minigpt.data.reading.own import own_documents, own_identity
from minigpt.data.reading.parquet import arrow_texts, parquet_texts
from minigpt.data.reading.tables import csv_texts, tsv_texts
from minigpt.data.reading.text import jsonl_texts, reading, split_documents, text_chunks

DEFAULT_DEMO_DOCUMENTS = 50_000
READERS = {
    "jsonl": jsonl_texts,
    "csv": csv_texts,
    "tsv": tsv_texts,
    "parquet": parquet_texts,
    "arrow": arrow_texts,
}
"""By the kind of a file: (its path, the fields, the first record) -> (number of the record, its text)."""

AnySource = SourceConfig | OwnSource


@dataclass(frozen=True)
class Document:
    """One text. `origin` says where it is from, in words for a message; `is_stream` that it is a whole plain text.

    `place` is (number of the file in the source, number of the record in that file), both from 0. All records count,
    blank ones too, so that `documents(..., start=place)` begins with this document.
    """

    text: str
    origin: str
    is_stream: bool
    place: tuple[int, int] = (0, 0)


def as_sources(sources: Sequence[AnySource | str] | AnySource | str) -> list[AnySource]:
    """Sources as the config gives them, or strings as a person types them (a path, a glob, a URL, `demo:stories`)."""
    try:
        given = [sources] if isinstance(sources, str | SourceConfig | Extension) else list(sources)
        return DataConfig.model_validate({"train": given}).train or []
    except ValidationError as error:
        first = error.errors()[0]
        raise RequestError(f"{first.get('input')!r} is no source of text: {first['msg']}") from None


def read_documents(
    source: AnySource | str, cache: Path, separator: str | None = None, on_progress: Progress | None = None
) -> Iterator[str]:
    """The texts of a source, one document at a time. `cache` holds downloads. RequestError; WorkError: no download."""
    (one,) = as_sources(source)
    for document in documents(one, cache, separator, on_progress):
        yield document.text


def documents(
    source: AnySource,
    cache: Path,
    separator: str | None,
    on_progress: Progress | None = None,
    *,
    start: tuple[int, int] = (0, 0),
    files: Callable[[int], bool] | None = None,
) -> Iterator[Document]:
    """The documents of a source, with where each comes from. `separator` is the tokenizer's, or None.

    From the place `start` on (see `Document`), and of the files only those for whose number `files` is true (None:
    all); others are not opened. RequestError for what cannot be read, WorkError for a failed download.
    """
    divided = False
    for number, read in enumerate(_readers(source, cache, separator, on_progress)):
        if number < start[0] or (files is not None and not files(number)):
            continue
        for record in read(start[1] if number == start[0] else 0):
            divided = divided or record.divided
            if record.text and not record.text.isspace():
                yield Document(record.text, record.origin, record.is_stream, (number, record.number))
    own = source.separator if isinstance(source, SourceConfig) else None
    if own is not None and not divided and start == (0, 0) and files is None:
        raise RequestError(f"separator={own!r} has no effect: it is nowhere in {describe(source)}")


def file_count(source: AnySource, cache: Path, on_progress: Progress | None = None) -> int:
    """How many files `Document.place` counts: those of a path, url or data set, else 1."""
    if isinstance(source, SourceConfig) and source.hub is not None:
        return len(hub_files(source))
    if isinstance(source, Extension) or (source.path is None and source.url is None):
        return 1
    return len(source_files(source, cache, on_progress))


class _Record(NamedTuple):
    """A text, blank or not. `divided`: the source's separator has occurred; `is_stream`: it is a whole plain text."""

    number: int
    text: str
    origin: str
    divided: bool = False
    is_stream: bool = False


def _readers(
    source: AnySource, cache: Path, separator: str | None, on_progress: Progress | None
) -> list[Callable[[int], Iterator[_Record]]]:
    """For each file of a source, what reads its records from a number on."""
    if isinstance(source, Extension):
        return [partial(_own_records, source)]
    if source.demo is not None:
        return [partial(_demo_records, source)]
    if source.hub is not None:
        return _hub_readers(source)
    if source.text is not None:
        if has_surrogates(source.text):
            raise RequestError("the source's text holds half of a surrogate pair, which is no character")
        return [partial(_text_records, [source.text], describe(source), source.separator, separator)]
    if is_token_source(source):
        raise RequestError(f"{describe(source)} holds token ids, not text; here text is needed")
    fields = Fields.of(source)
    return [
        partial(_file_records, path, fields, source.separator, separator)
        for path in source_files(source, cache, on_progress)
    ]


def _own_records(source: Extension, start: int) -> Iterator[_Record]:
    for number, text in own_documents(source):
        if number >= start:
            yield _Record(number, text, f"{source.kind} document {number + 1:,}")


def _demo_records(source: SourceConfig, start: int) -> Iterator[_Record]:
    module = _demo_module()
    make = {"stories": module.story, "dialogues": module.dialogue_text}[str(source.demo)]
    for number in range(start, _demo_count(source)):
        yield _Record(number, make(source.seed or 0, number), f"demo:{source.demo} text {number}")


def _hub_readers(source: SourceConfig) -> list[Callable[[int], Iterator[_Record]]]:
    def records(name: str, read: Callable[[int], Iterator[tuple[int, str]]], start: int) -> Iterator[_Record]:
        for number, text in read(start):
            yield _Record(number, text, f"{name} row {number + 1:,}")

    return [partial(records, name, read) for name, read in hub_files(source)]


def _file_records(path: Path, fields: Fields, own: str | None, special: str | None, start: int) -> Iterator[_Record]:
    kind = kind_of(path)
    if kind == "text":
        yield from _text_records(text_chunks(path, fields.errors), str(path), own, special, start)
    else:
        word = "line" if kind == "jsonl" else "row"
        for number, text in READERS[kind](path, fields, start):
            yield _Record(number, text, f"{path} {word} {number + 1:,}")


def _text_records(
    chunks: Iterable[str], origin: str, own: str | None, special: str | None, start: int
) -> Iterator[_Record]:
    """The texts of a plain text, which the source's own separator divides if it has one, else the tokenizer's.

    What the tokenizer knows as its special token divides documents in any case: it is part of none.
    """
    number = 0
    for text, divided in split_documents(chunks, own or special):
        parts = text.split(special) if own and special else [text]
        is_stream = not divided and len(parts) == 1
        for part in parts:
            if number >= start:
                yield _Record(
                    number, part, origin if is_stream else f"{origin} document {number + 1}", divided, is_stream
                )
            number += 1


def source_files(source: SourceConfig, cache: Path, on_progress: Progress | None = None) -> list[Path]:
    """The files of a source given by path or url (downloaded first), in the order in which they are read."""
    paths = local_files(str(source.path)) if source.url is None else _downloaded(source, cache, on_progress)
    for path in paths:
        # Names of one source decide together whether its options mean anything: none may be without effect.
        if path.name.lower().endswith((".json", ".json.gz", ".json.zst")):
            raise RequestError(f"{path} is a .json file; give JSON lines (.jsonl: one object a line) or plain text")
    tokens = [is_token_file(path) for path in paths]
    kinds = {kind_of(path) for path in paths if not is_token_file(path)}
    for name in ("field", "template"):
        if (value := getattr(source, name)) is not None and not kinds & TABLES:
            what = f"{describe(source)} has no fields as .jsonl, .csv, .tsv, .parquet and .arrow files have"
            raise RequestError(f"{name}={value!r} has no effect: {what}")
    if source.separator is not None and "text" not in kinds:
        raise RequestError(f"separator={source.separator!r} has no effect: {describe(source)} is no plain text")
    if source.errors is not None and not kinds:
        raise RequestError(f"errors={source.errors!r} has no effect: {describe(source)} holds no text")
    if source.dtype is not None and not any(tokens):
        raise RequestError(f"dtype={source.dtype!r} has no effect: {describe(source)} is not a .bin of token ids")
    return paths


def _downloaded(source: SourceConfig, cache: Path, on_progress: Progress | None) -> list[Path]:
    try:
        return [download(url, cache, source.sha256, source.bytes, on_progress=on_progress) for url in source.urls]
    except DownloadError as error:
        raise DownloadError(
            f"{error}; check the network, set {MIRROR_VARIABLE} to a mirror, or fetch the file elsewhere and name it "
            "instead (data.train=FILE)"
        ) from None


def is_token_source(source: AnySource | str) -> bool:
    """Whether a source holds token ids (.bin, .npy, shards) instead of text.

    Looked up by name, so nothing is downloaded. RequestError for one that holds both.
    """
    (one,) = as_sources(source)
    if isinstance(one, Extension) or (one.url is None and one.path is None):
        return isinstance(one, SourceConfig) and one.shards is not None
    if one.url is not None:
        kinds = {is_token_file(Path(urllib.parse.urlsplit(url).path)) for url in one.urls}
    else:
        kinds = {is_token_file(path) for path in local_files(str(one.path))}
    if len(kinds) == 2:
        raise RequestError(
            f"{describe(one)} matches both text and token files (.bin, .npy); give them as separate runs"
        )
    return kinds.pop()


def identity(source: AnySource, cache: Path, on_progress: Progress | None = None) -> dict[str, Any]:
    """What determines the text of a source, as JSON: content, not names. Two equal ones give the same documents."""
    if isinstance(source, Extension):
        return {"own": own_identity(source)}
    if source.text is not None:
        digest = hashlib.sha256(source.text.encode("utf-8", "surrogatepass")).hexdigest()
        return {"text": digest, "separator": source.separator}
    if source.demo is not None:
        version = _demo_module().GRAMMAR_VERSION
        return {"demo": source.demo, "grammar": version, "seed": source.seed or 0, "documents": _demo_count(source)}
    if source.hub is not None:
        return {"hub": hub_identity(source, cache)}
    if source.shards is not None:
        raise RequestError(f"{describe(source)} holds token ids, not text; here text is needed")
    files = []
    for path in source_files(source, cache, on_progress):
        with reading(path):
            files.append({"sha256": content_sha256(path, cache), "kind": kind_of(path)})
    known = {"files": files, "field": source.field or DEFAULT_FIELD, "separator": source.separator}
    if source.template is not None:
        known |= {"field": None, "template": source.template}
    return known | ({"errors": "replace"} if source.errors == "replace" else {})


def describe(source: AnySource) -> str:
    """A source in a few words, for messages."""
    if isinstance(source, Extension):
        return source.kind
    if source.hub is not None:
        return f"hub:{source.hub}" + (f" ({source.config})" if source.config else "")
    if source.demo is not None:
        return f"demo:{source.demo}"
    return source.path or source.url or source.shards or "the text given in the config"


def describe_sources(sources: Sequence[AnySource]) -> str:
    """Several sources in a few words."""
    return ", ".join(map(describe, sources))


def _demo_module() -> ModuleType:
    return importlib.import_module("minigpt.data.demo")  # here, not above: few runs need its word lists


def _demo_count(source: SourceConfig) -> int:
    return DEFAULT_DEMO_DOCUMENTS if source.documents is None else source.documents
