"""Where text comes from: literal text, files, folders, globs, JSON lines, parquet, HTTP(S), demo text, own classes.

A source is a sequence of documents. A text file is one document, or several where it holds a separator: the source's
own (`separator`), and `<|endoftext|>` if the tokenizer has that special token. Each line of a JSONL file is one, each
row of a parquet file, each demo text. Documents of nothing but white space are left out. Files of a folder or a glob
come in the order of their paths. Every source can be read any number of times.
"""

import hashlib
import importlib
import urllib.parse
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from minigpt.config import DataConfig, OwnSource, RequestError, SourceConfig
from minigpt.config.extension import Extension
from minigpt.data.download import DownloadError, Progress, download
from minigpt.data.files import kind_of, local_files
from minigpt.data.hub import MIRROR_VARIABLE
from minigpt.data.memo import content_sha256
from minigpt.data.own import own_documents, own_identity
from minigpt.data.parquet import parquet_texts
from minigpt.data.text import has_surrogates, jsonl_texts, reading, split_documents, text_chunks
from minigpt.data.token_files import is_token_file

DEFAULT_FIELD = "text"
DEFAULT_DEMO_DOCUMENTS = 50_000

AnySource = SourceConfig | OwnSource


@dataclass(frozen=True)
class Document:
    """One text. `origin` says where it is from, in words for a message; `is_stream` that it is a whole plain text."""

    text: str
    origin: str
    is_stream: bool


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
    source: AnySource, cache: Path, separator: str | None, on_progress: Progress | None = None
) -> Iterator[Document]:
    """The documents of a source, with where each comes from. `separator` is the tokenizer's, or None."""
    if isinstance(source, Extension):
        for number, text in own_documents(source):
            yield from _unless_blank(text, f"{source.kind} document {number:,}")
        return
    if source.demo is not None:
        yield from _demo_documents(source)
        return
    separated = False
    if source.text is not None:
        if has_surrogates(source.text):
            raise RequestError("the source's text holds half of a surrogate pair, which is no character")
        separated = yield from _split([source.text], describe(source), source.separator, separator)
    else:
        field = source.field or DEFAULT_FIELD
        for path in source_files(source, cache, on_progress):
            if is_token_file(path):
                raise RequestError(f"{path} holds token ids, not text; here text is needed")
            kind = kind_of(path)
            if kind == "jsonl":
                for number, text in jsonl_texts(path, field):
                    yield from _unless_blank(text, f"{path} line {number}")
            elif kind == "parquet":
                for number, text in parquet_texts(path, field):
                    yield from _unless_blank(text, f"{path} row {number:,}")
            else:
                found = yield from _split(text_chunks(path), str(path), source.separator, separator)
                separated = separated or found
    if source.separator is not None and not separated:
        raise RequestError(f"separator={source.separator!r} has no effect: it is nowhere in {describe(source)}")


def _unless_blank(text: str, origin: str) -> Iterator[Document]:
    if text and not text.isspace():
        yield Document(text, origin, is_stream=False)


def _split(chunks: Iterable[str], origin: str, own: str | None, special: str | None) -> Generator[Document, None, bool]:
    """The documents of a plain text; returns whether the source's own separator, if it has one, was in it.

    What the tokenizer knows as its special token divides documents in any case: it is part of none.
    """
    number, separated = 0, False
    for text, separated in split_documents(chunks, own or special):
        for part in text.split(special) if own and special else [text]:
            number += 1
            if part and not part.isspace():
                yield Document(part, f"{origin} document {number}" if separated else origin, is_stream=not separated)
    return separated


def source_files(source: SourceConfig, cache: Path, on_progress: Progress | None = None) -> list[Path]:
    """The files of a source given by path or url (downloaded first), in the order in which they are read."""
    paths = local_files(str(source.path)) if source.url is None else _downloaded(source, cache, on_progress)
    for path in paths:
        # Names of one source decide together whether its options mean anything: none may be without effect.
        if path.name.lower().endswith((".json", ".json.gz")):
            raise RequestError(f"{path} is a .json file; give JSON lines (.jsonl: one object a line) or plain text")
    tokens = [is_token_file(path) for path in paths]
    kinds = {kind_of(path) for path in paths if not is_token_file(path)}
    if source.field is not None and not kinds & {"jsonl", "parquet"}:
        raise RequestError(
            f"field={source.field!r} has no effect: {describe(source)} is neither JSON lines (.jsonl) nor parquet"
        )
    if source.separator is not None and "text" not in kinds:
        raise RequestError(f"separator={source.separator!r} has no effect: {describe(source)} is no plain text")
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


def is_token_source(source: AnySource | str, cache: Path | None = None) -> bool:
    """Whether a source holds token ids (.bin, .npy) instead of text; looked up by name, so nothing is downloaded.

    RequestError for one that holds both.
    """
    (one,) = as_sources(source)
    if isinstance(one, Extension) or (one.url is None and one.path is None):
        return False
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
    files = []
    for path in source_files(source, cache, on_progress):
        with reading(path):
            files.append({"sha256": content_sha256(path, cache), "kind": kind_of(path)})
    return {"files": files, "field": source.field or DEFAULT_FIELD, "separator": source.separator}


def describe(source: AnySource) -> str:
    """A source in a few words, for messages."""
    if isinstance(source, Extension):
        return source.kind
    return source.path or source.url or (f"demo:{source.demo}" if source.demo else "the text given in the config")


def describe_sources(sources: Sequence[AnySource]) -> str:
    """Several sources in a few words."""
    return ", ".join(map(describe, sources))


def _demo_module() -> ModuleType:
    return importlib.import_module("minigpt.data.demo")  # here, not above: few runs need its word lists


def _demo_count(source: SourceConfig) -> int:
    return DEFAULT_DEMO_DOCUMENTS if source.documents is None else source.documents


def _demo_documents(source: SourceConfig) -> Iterator[Document]:
    module = _demo_module()
    make = {"stories": module.story, "dialogues": module.dialogue_text}[str(source.demo)]
    for index in range(_demo_count(source)):
        yield Document(make(source.seed or 0, index), f"demo:{source.demo} text {index}", is_stream=False)
