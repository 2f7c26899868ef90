"""Where text comes from: literal text, files, folders, globs, JSON lines, HTTP(S), and minigpt's own demo text.

A source is a sequence of documents. A text file is one document, or several where it holds the separator
(`<|endoftext|>`, if the tokenizer has that special token); each line of a JSONL file is one, each demo text too.
Documents of nothing but white space are left out. Files of a folder or a glob come in the order of their paths. Every
source can be read any number of times.
"""

import hashlib
import importlib
import os
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from minigpt.config import DataConfig, RequestError, SourceConfig
from minigpt.data.download import Progress, download
from minigpt.data.memo import content_sha256
from minigpt.data.text import has_surrogates, jsonl_texts, reading, split_documents, text_chunks
from minigpt.data.token_files import is_token_file

DEFAULT_FIELD = "text"
DEFAULT_DEMO_DOCUMENTS = 50_000
FOLDER_SUFFIXES = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")
JSONL_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")


@dataclass(frozen=True)
class Document:
    """One text. `origin` says where it is from, in words for a message; `is_stream` that it is a whole plain text."""

    text: str
    origin: str
    is_stream: bool


def as_sources(sources: Sequence[SourceConfig | str] | SourceConfig | str) -> list[SourceConfig]:
    """Sources as the config gives them, or strings as a person types them (a path, a glob, a URL, `demo:stories`)."""
    try:
        given = [sources] if isinstance(sources, str | SourceConfig) else list(sources)
        return DataConfig.model_validate({"train": given}).train or []
    except ValidationError as error:
        first = error.errors()[0]
        raise RequestError(f"{first.get('input')!r} is no source of text: {first['msg']}") from None


def read_documents(
    source: SourceConfig | str, cache: Path, separator: str | None = None, on_progress: Progress | None = None
) -> Iterator[str]:
    """The texts of a source, one document at a time. `cache` holds downloads. RequestError; WorkError: no download."""
    (one,) = as_sources(source)
    for document in documents(one, cache, separator, on_progress):
        yield document.text


def documents(
    source: SourceConfig, cache: Path, separator: str | None, on_progress: Progress | None = None
) -> Iterator[Document]:
    """The documents of a source, with where each comes from."""
    if source.text is not None:
        if has_surrogates(source.text):
            raise RequestError("the source's text holds half of a surrogate pair, which is no character")
        yield from _split([source.text], "the text given in the config", separator)
    elif source.demo is not None:
        yield from _demo_documents(source)
    else:
        for path in source_files(source, cache, on_progress):
            if is_token_file(path):
                raise RequestError(f"{path} holds token ids, not text; here text is needed")
            if _is_jsonl(path):
                for number, text in jsonl_texts(path, source.field or DEFAULT_FIELD):
                    if not text.isspace() and text:
                        yield Document(text, f"{path} line {number}", is_stream=False)
            else:
                yield from _split(text_chunks(path), str(path), separator)


def _split(chunks: Iterator[str] | list[str], origin: str, separator: str | None) -> Iterator[Document]:
    for number, (text, separated) in enumerate(split_documents(chunks, separator), start=1):
        if text and not text.isspace():
            yield Document(text, f"{origin} document {number}" if separated else origin, is_stream=not separated)


def source_files(source: SourceConfig, cache: Path, on_progress: Progress | None = None) -> list[Path]:
    """The files of a source given by path or url (downloaded first), in the order in which they are read."""
    if source.url is not None:
        paths = [download(source.url, cache, source.sha256, source.bytes, on_progress=on_progress)]
    else:
        paths = _local_files(str(source.path))
    for path in paths:
        # Names of one source decide together whether its options mean anything: none may be without effect.
        if path.name.lower().endswith((".json", ".json.gz")):
            raise RequestError(f"{path} is a .json file; give JSON lines (.jsonl: one object a line) or plain text")
    if source.field is not None and not any(_is_jsonl(path) for path in paths):
        raise RequestError(f"field={source.field!r} has no effect: {_describe(source)} is not JSON lines (.jsonl)")
    if source.dtype is not None and not any(is_token_file(path) for path in paths):
        raise RequestError(f"dtype={source.dtype!r} has no effect: {_describe(source)} is not a .bin of token ids")
    return paths


def is_token_source(source: SourceConfig | str, cache: Path | None = None) -> bool:
    """Whether a source holds token ids (.bin, .npy) instead of text; looked up by name, so nothing is downloaded.

    RequestError for one that holds both.
    """
    (one,) = as_sources(source)
    if one.url is not None:
        return is_token_file(Path(urllib.parse.urlsplit(one.url).path))
    if one.path is None:
        return False
    kinds = {is_token_file(path) for path in _local_files(one.path)}
    if len(kinds) == 2:
        raise RequestError(f"{one.path} matches both text and token files (.bin, .npy); give them as separate runs")
    return kinds.pop()


def identity(source: SourceConfig, cache: Path, on_progress: Progress | None = None) -> dict[str, Any]:
    """What determines the text of a source, as JSON: content, not names. Two equal ones give the same documents."""
    if source.text is not None:
        return {"text": hashlib.sha256(source.text.encode("utf-8", "surrogatepass")).hexdigest()}
    if source.demo is not None:
        version = _demo_module().GRAMMAR_VERSION
        return {"demo": source.demo, "grammar": version, "seed": source.seed or 0, "documents": _demo_count(source)}
    files = []
    for path in source_files(source, cache, on_progress):
        with reading(path):
            files.append({"sha256": content_sha256(path, cache), "jsonl": _is_jsonl(path)})
    return {"files": files, "field": source.field or DEFAULT_FIELD}


def _local_files(given: str) -> list[Path]:
    if not given.strip():
        raise RequestError("a source's path is empty")
    try:
        path = Path(given).expanduser()
    except RuntimeError:
        raise RequestError(f"{given}: there is no such user, so no home folder") from None
    with reading(path):
        if path.is_dir():
            return _folder_files(path)
        if os.path.lexists(path):
            if not path.is_file():
                raise RequestError(f"{path} is neither a file nor a folder")
            if path.stat().st_size == 0:
                raise RequestError(f"{path} is empty")
            return [path]
        if not any(character in given for character in "*?["):
            raise RequestError(f"there is no file or folder {given}")
        # pathlib's glob wants a pattern relative to a folder; the part before the first pattern is that folder.
        parts = path.parts
        fixed = next(i for i, part in enumerate(parts) if any(c in part for c in "*?["))
        base, wants_hidden = Path(*parts[:fixed]), any(part.startswith(".") for part in parts[fixed:])
        # As in a shell, `*` does not find hidden files and folders (.DS_Store, .git), `.*` does.
        matches = [path for path in base.glob(str(Path(*parts[fixed:]))) if wants_hidden or not _is_hidden(path, base)]
        found = sorted(path for path in matches if path.is_file())
    if not found:
        raise RequestError(f"no file matches {given}")
    return found


def _folder_files(folder: Path) -> list[Path]:
    found = []
    os.listdir(folder)  # rglob passes over a folder that may not be read, this says so
    for path in sorted(folder.rglob("*")):
        if not _is_hidden(path, folder) and path.name.lower().endswith(FOLDER_SUFFIXES) and path.is_file():
            found.append(path)
    if not found:
        kinds = ", ".join(FOLDER_SUFFIXES)
        raise RequestError(
            f"folder {folder} holds no {kinds} file; name other files with a glob such as '{folder}/*.md'"
        )
    return found


def _is_hidden(path: Path, base: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(base).parts)


def _is_jsonl(path: Path) -> bool:
    return path.name.lower().endswith(JSONL_SUFFIXES)


def _describe(source: SourceConfig) -> str:
    return source.path or source.url or (f"demo:{source.demo}" if source.demo else "the text given in the config")


def describe_sources(sources: Sequence[SourceConfig]) -> str:
    """The sources in a few words, for messages."""
    return ", ".join(_describe(source) for source in sources)


def _demo_module() -> ModuleType:
    return importlib.import_module("minigpt.data.demo")  # here, not above: few runs need its word lists


def _demo_count(source: SourceConfig) -> int:
    return DEFAULT_DEMO_DOCUMENTS if source.documents is None else source.documents


def _demo_documents(source: SourceConfig) -> Iterator[Document]:
    module = _demo_module()
    make = {"stories": module.story, "dialogues": module.dialogue_text}[str(source.demo)]
    for index in range(_demo_count(source)):
        yield Document(make(source.seed or 0, index), f"demo:{source.demo} text {index}", is_stream=False)
