"""Which folder a command means when it is given a model: its own, a checkpoint, or the right one of a run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minigpt.config import RequestError
from minigpt.storage.atomic import MANIFEST, CorruptFolderError
from minigpt.storage.checkpoint import CHECKPOINTS, POINTERS, newest_good, resolve_pointer, step_of, verify_model
from minigpt.storage.model_folder import (
    CONFIG_FILE,
    FOREIGN_WEIGHTS,
    WEIGHTS_FILE,
    find_tokenizer,
    is_own,
    load_model_config,
)

MODEL_FOLDER = "model"
RUN_CONFIG = "config.yaml"


@dataclass(frozen=True)
class ModelFolder:
    """Where a model was found."""

    path: Path
    """The folder with config.json and the weights: minigpt's own, or a Hugging Face folder."""
    tokenizer_path: Path | None
    """The file of its tokenizer (tokenizer.json, mostly), if it has one."""
    step: int | None
    """The training step if it is a checkpoint."""


def resolve_model(path: Path | str, log: Callable[[str], None] | None = None) -> ModelFolder:
    """Find the model that a command was given: a model folder (ours or Hugging Face's), a checkpoint, a run folder, or
    `checkpoints/last|best`.

    Of a run folder it is `model/` once the run is finished and the newest good checkpoint until then; damaged ones are
    passed over with a line to `log` and left where they are. Takes no lock: a run may go on meanwhile. What has a
    manifest is verified, but for the optimizer, which nobody reads here, and for Hugging Face folders, which other
    programs may have changed since. Raises `RequestError` or `CorruptFolderError`.
    """
    path = Path(path)
    if path.name in POINTERS and path.parent.name == CHECKPOINTS and not path.is_dir():
        return _found(resolve_pointer(path, log))
    if path.name in (CONFIG_FILE, *FOREIGN_WEIGHTS):
        path = path.parent
    if not path.exists():
        raise RequestError(f"model {path} does not exist")
    if not path.is_dir():
        raise RequestError(f"{path} is a file: a model is a run folder, a checkpoint or a model folder")
    if (path / CONFIG_FILE).exists() or step_of(path) is not None:
        if step_of(path) is not None or ((path / MANIFEST).exists() and _is_ours(path)):
            verify_model(path)
        return _found(path)
    run = path.parent if path.name == CHECKPOINTS else path
    finished = run / MODEL_FOLDER
    if path == run and ((finished / CONFIG_FILE).exists() or (finished.is_dir() and (run / RUN_CONFIG).exists())):
        try:
            verify_model(finished)
            return _found(finished)
        except CorruptFolderError as error:
            if newest_good(run, lambda line: None) is None:
                raise
            if log is not None:
                log(f"{error}; using the newest checkpoint of {run} instead")
    if (run / CHECKPOINTS).is_dir():
        newest = newest_good(run, log)
        if newest is None:
            raise RequestError(f"run folder {run} has no usable checkpoint (yet)")
        return _found(newest)
    if (run / RUN_CONFIG).exists():
        raise RequestError(f"run folder {run} has no checkpoint yet")
    what = "it is empty" if not any(path.iterdir()) else f"it has neither {CONFIG_FILE} nor {CHECKPOINTS}/"
    raise RequestError(f"{path} is neither a run folder nor a model folder: {what}")


def _is_ours(folder: Path) -> bool:
    """Whether it is a folder of minigpt's own, as far as one that may be damaged says."""
    try:
        return is_own(folder)
    except CorruptFolderError:
        return True


def _found(folder: Path) -> ModelFolder:
    own = is_own(folder)
    if own:
        load_model_config(folder)
    if not any((folder / name).is_file() for name in ((WEIGHTS_FILE,) if own else FOREIGN_WEIGHTS)):
        raise RequestError(
            f"{folder} is not a whole model folder: it has no {WEIGHTS_FILE}"
            + ("" if own else f", no {FOREIGN_WEIGHTS[2]} and no index of several such files")
        )
    return ModelFolder(folder, find_tokenizer(folder), step_of(folder))
