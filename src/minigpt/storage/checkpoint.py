"""Checkpoints of a run: `RUN/checkpoints/step-00001000/`, each a model folder with what training needs beside it.

The step folders are the truth. `last` and `best` are one-line text files for people and scripts; nothing here trusts
them. Whoever saves, loads the latest or prunes holds the run folder's lock and does one of these at a time; reading a
checkpoint of a run that goes on needs no lock.
"""

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt.config import ModelConfig, RequestError, WorkError
from minigpt.storage import exact_json, fs
from minigpt.storage.atomic import (
    CorruptFolderError,
    atomic_folder,
    atomic_write,
    clean_stale,
    discard_folder,
    read_error,
    read_manifest,
    reason,
    recover_replaced,
    verify_folder,
)
from minigpt.storage.model_folder import (
    WEIGHTS_FILE,
    SavesTokenizer,
    find_tokenizer,
    load_model_config,
    write_description,
    write_model,
)

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

    from minigpt.storage.sharded import Held
    from minigpt.storage.tensor_files import TensorFiles

CHECKPOINTS = "checkpoints"
LAST, BEST = POINTERS = ("last", "best")
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "trainer_state.json"
OPTIMIZER_SHARD = re.compile(r"optimizer-(\d{5})-of-(\d{5})\.safetensors")
"""Pieces of the optimizer's tensors that the processes of a run on several have written."""
MINIMUM_KEPT = 2  # so that there is a previous one when the newest is damaged
_STEP = re.compile(r"step-(\d{8,})")

Log = Callable[[str], None]


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on."""

    path: Path
    step: int
    model_config: ModelConfig
    model_state: "TensorFiles"
    """Read when they are asked for, whole or box by box."""
    optimizer_state: "TensorFiles"
    trainer_state: dict[str, Any]
    loss: float | None
    """The validation loss by which the best one is chosen; None if there was none at this step."""
    tokenizer_path: Path | None


def save_checkpoint(
    run_dir: Path,
    step: int,
    *,
    model_config: ModelConfig,
    model_state: "Mapping[str, torch.Tensor]",
    optimizer_state: "Mapping[str, torch.Tensor]",
    trainer_state: Mapping[str, Any],
    tokenizer: SavesTokenizer | None,
    loss_for_best: float | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint, whole or not at all, and point `last` (and, if its loss is the lowest, `best`) to it.

    One of the same step is replaced. `trainer_state` is kept exactly (see `exact_json`). Raises `WorkError` if the disk
    refuses; the checkpoints before are then as they were.
    """
    from minigpt.storage.tensors import save_tensors

    encoded = _state_bytes(step, loss_for_best, trainer_state)
    final = run_dir / CHECKPOINTS / step_name(step)
    with atomic_folder(final, replace=True, kept=_kept(run_dir)) as folder:
        write_model(folder, model_config, model_state, tokenizer, extra=extra)
        save_tensors(folder / OPTIMIZER_FILE, optimizer_state)
        fs.write_file(folder / STATE_FILE, encoded)
    _write_pointers(run_dir)
    return final


def save_sharded_checkpoint(
    run_dir: Path,
    step: int,
    group: "ProcessGroup",
    *,
    model_config: ModelConfig,
    model: "Held",
    optimizer: "Held",
    trainer_state: Mapping[str, Any],
    tokenizer: SavesTokenizer | None,
    loss_for_best: float | None = None,
) -> Path:
    """`save_checkpoint` by all processes of a group together, each with the parts that it holds (see `save_sharded`).

    What is no tensor is the first process's. Raises `WorkError`, the same on all.
    """
    from minigpt.storage.sharded import save_sharded

    encoded = _state_bytes(step, loss_for_best, trainer_state)
    final = run_dir / CHECKPOINTS / step_name(step)

    def complete(folder: Path) -> None:
        write_description(folder, model_config, tokenizer)
        fs.write_file(folder / STATE_FILE, encoded)

    save_sharded(final, model, optimizer, group, complete=complete, kept=_kept(run_dir))
    if group.rank() == 0:
        _write_pointers(run_dir)
    return final


def _kept(run_dir: Path) -> str:
    """What is left if a save fails."""
    existing = list_checkpoints(run_dir)
    return f"the previous checkpoint {existing[-1].name} is kept" if existing else "there was no checkpoint before"


def _state_bytes(step: int, loss: float | None, trainer_state: Mapping[str, Any]) -> bytes:
    return exact_json.dumps({"format_version": 1, "step": step, "loss": loss, "trainer": dict(trainer_state)})


def load_checkpoint(folder: Path, device: "str | torch.device" = "cpu") -> Checkpoint:
    """Verify a checkpoint and open it; `CorruptFolderError` says what is damaged."""
    if not folder.is_dir():
        raise RequestError(f"checkpoint {folder} does not exist")
    verify_folder(folder)
    return open_checkpoint(folder, device)


def open_checkpoint(folder: Path, device: "str | torch.device" = "cpu") -> Checkpoint:
    """Open a checkpoint that has been verified, by this process or another; its tensors are read when asked for."""
    from minigpt.storage.tensor_files import TensorFiles

    files = read_manifest(folder)["files"]
    if STATE_FILE not in files:
        raise RequestError(f"{folder} is a model folder and no checkpoint: it has no {STATE_FILE} to go on from")
    state = _read_state(folder)
    optimizer = [OPTIMIZER_FILE] if OPTIMIZER_FILE in files else _optimizer_shards(files)
    return Checkpoint(
        path=folder,
        step=state["step"],
        model_config=load_model_config(folder),
        model_state=TensorFiles([folder / WEIGHTS_FILE], device),
        optimizer_state=TensorFiles([folder / name for name in optimizer], device),
        trainer_state=state["trainer"],
        loss=state["loss"],
        tokenizer_path=find_tokenizer(folder),
    )


def load_latest(
    run_dir: Path,
    log: Log,
    device: "str | torch.device" = "cpu",
    accept: Callable[[int, dict[str, Any]], bool] = lambda step, trainer_state: True,
) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None if the run has none at all.

    Whole ones that `accept(step, trainer_state)` refuses are passed over.

    Newer ones that are damaged are moved aside (`damaged-step-...`), with one line each to `log`. If all are damaged
    they stay, and `CorruptFolderError` says so: starting afresh over them is not for a program to decide.
    """
    with contextlib.suppress(OSError):  # a checkpoint that cannot be put back is one that is not there
        recover_replaced(run_dir / CHECKPOINTS)
    damaged: list[tuple[Path, str]] = []
    for folder in reversed(list_checkpoints(run_dir)):
        try:
            checkpoint = load_checkpoint(folder, device)
        except CorruptFolderError as error:
            damaged.append((folder, error.reason))
            continue
        if not accept(checkpoint.step, checkpoint.trainer_state):
            continue
        for bad, why in damaged:
            log(f"checkpoint {bad.name} is damaged ({why}): {_move_aside(bad)}, going on from {folder.name}")
        if damaged:
            with contextlib.suppress(WorkError):  # only a hint, and the disk has trouble already
                _write_pointers(run_dir)
        return checkpoint
    if damaged:
        folder, why = damaged[0]
        raise CorruptFolderError(
            folder,
            why,
            f"{run_dir} has no usable checkpoint left ({len(damaged)} damaged; {folder.name}: {why}): "
            "put one back from a backup, or start again in another run folder",
        )
    return None


def newest_good(run_dir: Path, log: Log | None = None) -> Path | None:
    """The newest checkpoint whose model is whole, for reading; damaged ones get a line and stay."""
    for folder in reversed(list_checkpoints(run_dir)):
        try:
            verify_model(folder)
            return folder
        except CorruptFolderError as error:
            if log is not None and folder.exists():  # else the run has pruned it meanwhile
                log(f"{error}; passing over it")
    return None


def verify_model(folder: Path) -> None:
    """Check the files of a checkpoint or model folder that a model is made of, against the manifest."""
    verify_folder(folder, skip=(OPTIMIZER_FILE, STATE_FILE, *_optimizer_shards(read_manifest(folder)["files"])))


def best_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint of the lowest recorded loss, the earliest of equals; None if none recorded one."""
    best: tuple[float, Path] | None = None
    for folder in list_checkpoints(run_dir):
        try:
            loss = _read_state(folder)["loss"]
        except WorkError:  # damaged ones cannot be the best; loading is where they are reported
            continue
        if loss is not None and math.isfinite(loss) and (best is None or loss < best[0]):
            best = (loss, folder)
    return best[1] if best else None


def resolve_pointer(pointer: Path, log: Log | None = None) -> Path:
    """The checkpoint that `RUN/checkpoints/last` or `best` stands for, found in the step folders themselves."""
    run_dir = pointer.parent.parent
    if pointer.name == BEST:
        best = best_checkpoint(run_dir)
        if best is None:
            raise RequestError(f"{run_dir} has no best checkpoint: none was saved at a step with a validation loss")
        verify_model(best)
        return best
    newest = newest_good(run_dir, log)
    if newest is None:
        raise RequestError(f"run folder {run_dir} has no usable checkpoint (yet)")
    return newest


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The step folders, oldest first, damaged or not."""
    try:
        found = [(step, path) for path in (run_dir / CHECKPOINTS).iterdir() if (step := step_of(path)) is not None]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise WorkError(f"could not read {run_dir / CHECKPOINTS}: {reason(error)}") from error
    return [path for _, path in sorted(found)]


def prune(run_dir: Path, keep_last: int, log: Log) -> None:
    """Delete old checkpoints, but never the newest `keep_last` (at least 2) that look whole, nor the best one.

    Looking whole means names and sizes (each was hashed when it was written). A deletion that fails is a line to `log`.
    """
    checkpoints = list_checkpoints(run_dir)
    best = best_checkpoint(run_dir)
    whole = 0
    for folder in reversed(checkpoints):
        if whole < max(keep_last, MINIMUM_KEPT):
            with contextlib.suppress(WorkError):
                verify_folder(folder, hashes=False)
                whole += 1
            continue
        if folder == best:
            continue
        try:
            discard_folder(folder)
        except OSError as error:
            log(f"could not delete the old checkpoint {folder}: {reason(error)}")


def clean_run(run_dir: Path, log: Log) -> None:
    """Finish what a killed process left in a run folder. For the holder of its lock, before it writes anything."""
    clean_stale(run_dir, locked=True, log=log)
    clean_stale(run_dir / CHECKPOINTS, locked=True, log=log)


def step_name(step: int) -> str:
    """`step-00001000`"""
    return f"step-{step:08d}"


def step_of(folder: Path) -> int | None:
    """The step in a checkpoint folder's name; None for anything else."""
    match = _STEP.fullmatch(folder.name)
    return int(match[1]) if match and folder.is_dir() else None


def _optimizer_shards(files: Iterable[str]) -> list[str]:
    return sorted(name for name in files if OPTIMIZER_SHARD.fullmatch(name))


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        state = exact_json.loads((folder / STATE_FILE).read_bytes())
    except OSError as error:
        raise read_error(folder, STATE_FILE, error) from error
    except (ValueError, RecursionError) as error:
        raise CorruptFolderError(folder, f"{STATE_FILE} is not JSON") from error
    if not isinstance(state, dict) or state.keys() != {"format_version", "step", "loss", "trainer"}:
        raise CorruptFolderError(folder, f"{STATE_FILE} is not a trainer's state")
    if state["format_version"] != 1:
        raise WorkError(f"{folder / STATE_FILE} was written by another version of minigpt: use that version")
    return state


def _write_pointers(run_dir: Path) -> None:
    newest = list_checkpoints(run_dir)[-1]
    kept = f"the checkpoint {newest.name} itself is whole"
    atomic_write(newest.parent / LAST, f"{newest.name}\n", kept=kept)
    best = best_checkpoint(run_dir)
    if best is not None:
        atomic_write(newest.parent / BEST, f"{best.name}\n", kept=kept)


def _move_aside(folder: Path) -> str:
    """Rename a damaged checkpoint out of the way, keeping it for whoever wants to look; says what became of it."""
    target, number = folder.with_name(f"damaged-{folder.name}"), 1
    while os.path.lexists(target):
        number += 1
        target = folder.with_name(f"damaged-{folder.name}-{number}")
    try:
        fs.rename(folder, target)
        fs.sync_folder(folder.parent)
    except OSError as error:
        return f"it cannot be moved aside ({reason(error)})"
    return f"moved aside to {target.name}"
