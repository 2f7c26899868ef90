"""Merging from folders to a folder. Memory: the merged model's weights, and one block of rows of each of the others."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from minigpt.config import RequestError, WorkError
from minigpt.interop.exporting import require_free
from minigpt.interop.merge.methods import IMPLEMENTED, Block
from minigpt.interop.merge.options import MergeOptions
from minigpt.interop.merge.sources import blocks, open_model, require_alike
from minigpt.storage import (
    CorruptFolderError,
    ModelFolder,
    atomic_folder,
    list_checkpoints,
    resolve_model,
    write_model,
)
from minigpt.storage.checkpoint import verify_model

Log = Callable[[str], None]


def merge_models(out: str | Path, models: Sequence[str | Path], log: Log = lambda line: None, **options: Any) -> Path:
    """Merge models into a new model folder `out`, and give its path.

    models: runs, checkpoints or model folders; with `last=K` one run. options: those of `MergeOptions`.
    Raises RequestError: an impossible request, or models that do not fit together. WorkError: one of them is damaged,
    or `out` cannot be written; it is then as it was.
    """
    asked = MergeOptions(**options).checked(len(models))
    require_free(Path(out))
    folders = [resolve_model(path, log) for path in models] if asked.last is None else _last(models[0], asked.last, log)
    base = None if asked.base is None else open_model(resolve_model(asked.base, log))
    sources = [open_model(folder) for folder in folders]
    everyone = sources if base is None else [base, *sources]
    require_alike(everyone)
    method = IMPLEMENTED[asked.method](asked, len(sources))

    def each_block() -> Iterator[Block]:
        return blocks(sources, base)

    with atomic_folder(Path(out), replace=Path(out).is_dir()) as folder:
        method.survey(each_block)
        state = {name: torch.empty(shape) for name, shape in sources[0].weights.shapes.items()}
        for block in each_block():
            merged = method.merge(block).float()
            if not merged.isfinite().all():
                raise WorkError(f"the merged tensor {block.name} has numbers that are too large: take smaller factors")
            state[block.name][block.start : block.start + merged.size(0)] = merged
        tokenizer = next((source.tokenizer for source in everyone if source.tokenizer is not None), None)
        write_model(folder, sources[0].config, state, tokenizer, extra={"merge": _record(asked, folders)})
    return Path(out)


def _last(run: str | Path, count: int, log: Log) -> list[ModelFolder]:
    """The last checkpoints of a run that are whole, oldest first."""
    found: list[ModelFolder] = []
    for folder in reversed(list_checkpoints(Path(run))):
        try:
            verify_model(folder)
        except CorruptFolderError as error:
            log(f"{error}; passing over it")
            continue
        found.insert(0, resolve_model(folder, log))
        if len(found) == count:
            return found
    if not found:
        raise RequestError(f"{run} has no usable checkpoints: --last takes those of a run folder")
    raise RequestError(f"{run} has only {len(found)} usable checkpoints, not --last={count}: see checkpoint.keep_last")


def _record(options: MergeOptions, folders: Sequence[ModelFolder]) -> dict[str, Any]:
    """What config.json says about where the weights come from: names, not the places of one machine."""
    said = {key: value for key, value in asdict(options).items() if value is not None}
    if options.base is not None:
        said["base"] = Path(options.base).name
    return {**said, "models": [folder.path.name for folder in folders]}
