"""Files of text on this machine: what a path, a folder or a glob pattern stands for, and the kinds that there are."""

import os
from pathlib import Path

from minigpt.config import RequestError
from minigpt.data.reading.compressed import plain_name
from minigpt.data.reading.text import reading

TEXT_SUFFIXES = (".txt", ".jsonl", ".csv", ".tsv")  # of files in a folder; these may be compressed
FOLDER_SUFFIXES = (*TEXT_SUFFIXES, ".parquet", ".arrow")
KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}
BINARY_KINDS = {".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow"}
TABLES = {"jsonl", "csv", "tsv", "parquet", "arrow"}
"""Kinds whose records have fields."""


def kind_of(path: Path) -> str:
    """How a file is read, by its name: `jsonl`, `csv`, `tsv`, `parquet`, `arrow` or `text`."""
    unpacked = Path(plain_name(path.name)).suffix
    return KINDS.get(unpacked) or BINARY_KINDS.get(path.suffix.lower()) or "text"


def local_files(given: str) -> list[Path]:
    """The files that a path, a folder or a pattern stands for, in the order of their paths. RequestError: none."""
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
        if not _is_hidden(path, folder) and _is_readable(path) and path.is_file():
            found.append(path)
    if not found and (folder / "meta.json").is_file() and any(folder.glob("*.tok")):
        raise RequestError(f"folder {folder} holds prepared tokens, not text: give it as {{shards: {folder}}}")
    if not found:
        kinds = ", ".join(FOLDER_SUFFIXES)
        raise RequestError(
            f"folder {folder} holds no {kinds} file; name other files with a glob such as '{folder}/*.md'"
        )
    return found


def _is_readable(path: Path) -> bool:
    return path.name.lower().endswith(FOLDER_SUFFIXES) or plain_name(path.name).endswith(TEXT_SUFFIXES)


def _is_hidden(path: Path, base: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(base).parts)
