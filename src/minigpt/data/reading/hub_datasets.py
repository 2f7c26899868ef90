"""Data sets of Hugging Face's hub, or of a folder that the `datasets` library can load, read with that library.

Needs `datasets` (the extra `hub`), which is imported when the first such source is read. Its copies of the hub's files
are kept where it keeps them for every program (HF_HOME). A folder, and a data set with `streaming`, is read as it is; a
data set of the hub is otherwise downloaded and converted by the library first. All of these give the same records.

Reading goes on at any record: the files before it are not opened, and within a file the library's own `skip` passes
over the records.
"""

import contextlib
import re
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from minigpt.config import RequestError, SourceConfig
from minigpt.data.reading.download import DownloadError
from minigpt.data.reading.fields import Fields
from minigpt.data.reading.hub_library import datasets_library, explained
from minigpt.data.reading.memo import content_sha256
from minigpt.data.reading.text import reading

DEFAULT_SPLIT = "train"
ROWS = 32  # records decoded at once; of whole books that is some 20 MB
TIMEOUT = 30.0  # seconds for the hub's answer about a data set
COMMIT = re.compile("[0-9a-f]{40}")
SAVED = ("dataset_dict.json", "state.json")  # in a folder that `save_to_disk` wrote

Reader = Callable[[int], Iterator[tuple[int, str]]]


def hub_files(source: SourceConfig) -> list[tuple[str, Reader]]:
    """The files of a data set: a name of each, and what reads it from a record on: (number from 0, text).

    RequestError: no such data set, configuration, split or field, or no access to it. DownloadError: the hub cannot be
    reached. Both may come when it is opened and while it is read.
    """
    fields, name = Fields.of(source), f"hub:{source.hub}"
    with _explained(source):
        dataset = _opened(source, fields)
    if hasattr(dataset, "num_rows"):  # converted: all its files have become one
        return [(name, partial(_texts, source, fields, name, lambda: dataset))]
    count = dataset.num_shards
    files: list[tuple[str, Reader]] = []
    for number in range(count):
        one = name if count == 1 else f"{name} file {number + 1:,}"
        shard = partial(dataset.shard, num_shards=count, index=number)
        files.append((one, partial(_texts, source, fields, one, shard)))
    return files


def hub_commit(source: SourceConfig) -> str | None:
    """The commit that the source stands for now, or None for a folder. Errors as for `hub_files`.

    A full commit (`revision`) is taken at its word, so that text prepared from it is found without a network.
    """
    if _folder(source) is not None:
        return None
    if source.revision is not None and COMMIT.fullmatch(source.revision):
        return source.revision
    with _explained(source):
        return _commit(source) or str(_builder(source, None).hash)


def hub_identity(source: SourceConfig, cache: Path) -> dict[str, Any]:
    """What determines the text, as JSON: a commit on the hub, or the names and hashes of the files in a folder."""
    folder, fields = _folder(source), Fields.of(source)
    content = {"name": source.hub, "commit": hub_commit(source)} if folder is None else _hashes(folder, cache)
    part = {"config": source.config, "split": source.split or DEFAULT_SPLIT}
    return {"content": content, **part, "field": fields.field, "template": source.template}


def _explained(source: SourceConfig) -> contextlib.AbstractContextManager[None]:
    return explained(str(source.hub), source.revision, is_folder=_folder(source) is not None)


# ---- opening a data set ----------------------------------------------------------------------------------------------


def _folder(source: SourceConfig) -> Path | None:
    """The folder that the source names; None for a name on the hub. RequestError for what is neither."""
    given = str(source.hub)
    path = Path(given).expanduser() if given.startswith("~") else Path(given)
    if path.is_dir():
        if source.revision is not None:
            raise RequestError(f"revision={source.revision!r} has no effect: {path} is a folder on this machine")
        return path
    if path.is_file():
        raise RequestError(f"{path} is a file: a source given by hub is a folder or a name; write path={path}")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", given, re.ASCII) or given.startswith("."):
        raise RequestError(f"there is no folder {given}, and a data set of the hub is called OWNER/NAME")
    return None


def _opened(source: SourceConfig, fields: Fields) -> Any:
    """The records of the source's split: a Dataset or an IterableDataset. Nothing is downloaded for a wrong request."""
    datasets, folder, split = datasets_library(), _folder(source), source.split or DEFAULT_SPLIT
    if folder is not None and any((folder / name).exists() for name in SAVED):
        if source.config is not None:
            raise RequestError(f"config={source.config!r} has no effect: {folder} holds one data set (save_to_disk)")
        saved = datasets.load_from_disk(str(folder))
        splits = saved if isinstance(saved, dict) else {str(saved.split or DEFAULT_SPLIT): saved}
    else:
        builder = _builder(source, _commit(source) if folder is None else None)
        splits = builder.as_streaming_dataset()
    if split not in splits:
        raise RequestError(f"{source.hub} has no split {split!r} (its splits: {', '.join(splits)}); set `split`")
    found = splits[split]
    names = found.column_names or list(next(iter(found), {}))
    fields.require(names, f"{source.hub}, split {split!r},")
    if folder is None and not source.streaming:
        builder.download_and_prepare()
        return builder.as_dataset(split)
    return found


def _commit(source: SourceConfig) -> str | None:
    """The commit that the hub gives for the source; None if it must not be asked (HF_HUB_OFFLINE)."""
    datasets_library()
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return None
    api = huggingface_hub.HfApi()
    about = api.dataset_info(str(source.hub), revision=source.revision, timeout=TIMEOUT, expand=["sha", "gated"])
    if about.gated:
        api.auth_check(str(source.hub), repo_type="dataset")
    return str(about.sha)


def _builder(source: SourceConfig, commit: str | None) -> Any:
    """The library's reader of the source, at the commit if that is known."""
    datasets, folder = datasets_library(), _folder(source)
    place = {"path": str(folder or source.hub), "revision": commit or source.revision}
    try:
        builder = datasets.load_dataset_builder(name=source.config, **place)
    except ValueError as error:  # this configuration is not there, or there are several and none is the default one
        if "onfig" not in str(error):
            raise
        names = ", ".join(datasets.get_dataset_config_names(**place))
        has = f"has no configuration {source.config!r}" if source.config else "has several configurations"
        raise RequestError(f"{source.hub} {has} ({names}); set `config` to one of them") from None
    if folder is None and COMMIT.fullmatch(str(place["revision"])) and builder.hash != place["revision"]:
        # Without the hub, the library takes what it finds in its cache, whatever the revision.
        raise DownloadError(f"{source.hub} is in the hub's cache at the commit {builder.hash}, not {place['revision']}")
    return builder


# ---- reading one -----------------------------------------------------------------------------------------------------


def _texts(
    source: SourceConfig, fields: Fields, where: str, part: Callable[[], Any], start: int
) -> Iterator[tuple[int, str]]:
    """(number, text) of the records of one file from number `start` on."""
    with _explained(source), contextlib.closing(_records(part(), start, fields.names)) as records:
        for number, record in enumerate(records, start=start):
            yield number, fields.text(record, f"{where} row {number + 1:,}")


def _records(part: Any, skipped: int, names: list[str]) -> Generator[dict[str, Any], None, None]:
    """The records of one file after the first `skipped` ones."""
    if part.column_names:
        part = part.select_columns(names)
    if skipped and skipped == getattr(part, "num_rows", None):
        return  # what the library calls out of range
    if skipped:
        part = part.skip(skipped)
    # Closed at once when the reader stops early: left to the end of the process, the library complains there.
    with contextlib.closing(part.iter(batch_size=ROWS)) as batches:
        for batch in batches:
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))


def _hashes(folder: Path, cache: Path) -> dict[str, str]:
    """SHA-256 of each file, by its path in the folder: `datasets` makes splits of the names."""
    with reading(folder):
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        inside = {path: path.relative_to(folder) for path in found}
        return {
            inside[path].as_posix(): content_sha256(path, cache)
            for path in found
            if not any(part.startswith(".") for part in inside[path].parts)
        }
