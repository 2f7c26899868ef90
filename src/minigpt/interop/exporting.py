"""A model goes out: which formats there are, and how one is written, verified and only then published.

An exporter is a function `export_FORMAT(source, folder, dtype, log)` (see `Exporter`) in a module of its own, imported
when it is asked for. It writes into an empty folder that nobody sees yet; `export_model` loads the source, makes that
folder and puts it in its place when the exporter has verified what it wrote.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from minigpt.config import ModelConfig, RequestError
from minigpt.config.extension import require_trust
from minigpt.interop.begin import begin_ids
from minigpt.storage import resolve_model
from minigpt.storage.atomic import MANIFEST, atomic_folder, temporary_name, write_error
from minigpt.storage.checkpoint import CHECKPOINTS, step_of
from minigpt.storage.resolve import MODEL_FOLDER
from minigpt.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from minigpt.model import GPT

Log = Callable[[str], None]
"""Takes one line for people."""


@dataclass(frozen=True)
class ExportSource:
    """The model that is exported. Its weights are read only when they are asked for."""

    path: Path
    """Its folder."""
    config: ModelConfig
    tokenizer: Tokenizer | None
    build: "Callable[[], GPT]"
    begin: tuple[int, ...] = ()
    """Ids that stand before every text that it knows (see `interop.begin`)."""

    @property
    def name(self) -> str:
        """What to call it: the folder's name, the run's for what is in a run."""
        path = self.path.absolute()
        if step_of(path) is not None:
            path = path.parent  # the folder of the checkpoints
        return path.parent.name if path.name in (CHECKPOINTS, MODEL_FOLDER) else path.name

    @cached_property
    def model(self) -> "GPT":
        """The network in fp32 on the CPU, in evaluation mode, without gradients."""
        return self.build().float().eval().requires_grad_(False)


def open_source(path: str, trust_code: bool | None = None, log: Log = lambda line: None) -> ExportSource:
    """The model of a run, checkpoint, model folder or Hugging Face folder, to be exported.

    trust_code: see `minigpt.load`. Raises RequestError: there is no such model; CorruptFolderError: it is damaged.
    """
    from minigpt.interop.huggingface.reading import build_model, read_config

    found = resolve_model(path, log)
    config = read_config(found.path)
    require_trust([config.mlp], f"the model {found.path}", trust_code)
    return ExportSource(
        path=found.path,
        config=config,
        tokenizer=load_tokenizer(found.tokenizer_path) if found.tokenizer_path else None,
        build=lambda: build_model(found.path, trust_code=trust_code),
        begin=begin_ids(found.path),
    )


class Exporter(Protocol):
    """Writes a model in a format that is not ours."""

    def __call__(self, source: ExportSource, folder: Path, dtype: str, log: Log) -> Path:
        """Write all files into an existing empty folder and verify them there (`interop.verify`).

        dtype: one of the format's (see FORMATS). Gives the main file, or the folder itself if there is none.
        Raises RequestError: the format cannot say this model, with the reason. WorkError: what was written is wrong.
        """


@dataclass(frozen=True)
class Format:
    """Where a format's exporter is and the types of numbers that it can write, the default first."""

    module: str
    function: str
    dtypes: tuple[str, ...]
    suffix: str | None = None
    """OUT may also be one file of this ending: then that alone is written."""


FORMATS = {
    "hf": Format("minigpt.interop.huggingface.writing", "export_hf", ("fp32", "bf16", "fp16")),
    "gguf": Format("minigpt.interop.gguf", "export_gguf", ("f32", "f16", "bf16", "q8_0", "q4_0"), ".gguf"),
    "llama2c": Format("minigpt.interop.llama2c", "export_llama2c", ("fp32",), ".bin"),
}


def export_model(
    source: ExportSource, out: Path, format: str, dtype: str | None = None, log: Log = lambda line: None
) -> Path:
    """Export to `out`, which must not exist yet: a folder, or one file if it ends as the format's files do.

    Gives the main file (or the folder). Raises RequestError: an unknown format or type of numbers, `out` exists, the
    format cannot say this model. WorkError: `out` cannot be written, or what was written is not the model.
    """
    kind = FORMATS.get(format)
    if kind is None:
        raise RequestError(f"unknown format {format!r}: choose one of {', '.join(FORMATS)}")
    dtype = kind.dtypes[0] if dtype is None else dtype
    if dtype not in kind.dtypes:
        raise RequestError(
            f"{format} files with {dtype} numbers are not possible: choose one of {' '.join(kind.dtypes)}"
        )
    other = next((name for name, its in FORMATS.items() if its.suffix == out.suffix != kind.suffix), None)
    if other is not None:
        raise RequestError(f"{out} is the name of a file, which --format {format} does not write: say --format {other}")
    words, rows = source.tokenizer, source.config.vocab_size
    if words is not None and rows is not None and words.vocab_size > rows:
        raise RequestError(
            f"the tokenizer has {words.vocab_size:,} ids and the model only {rows:,}: give it more rows with minigpt "
            f"import --vocab-size {words.vocab_size}, or its own tokenizer with --tokenizer"
        )
    require_free(out)
    exporter: Exporter = getattr(import_module(kind.module), kind.function)
    with _new_parents_only_if_done(out):
        if out.suffix == kind.suffix and not out.is_dir():
            return _one_file(exporter, source, out, dtype, log)
        with atomic_folder(out, replace=out.is_dir()) as folder:
            main = exporter(source, folder, dtype, log).relative_to(folder)
        return out / main


def require_free(out: Path) -> None:
    """RequestError if there is something at `out`, before any work is done. An empty folder is nothing."""
    try:
        free = not os.path.lexists(out) or (out.is_dir() and not out.is_symlink() and not any(out.iterdir()))
    except OSError as error:
        raise write_error(out, error) from error
    if not free:
        raise RequestError(f"{out} exists already: choose another place, or remove it first")


@contextlib.contextmanager
def _new_parents_only_if_done(out: Path) -> Iterator[None]:
    """Folders above `out` that did not exist go again if it is not written."""
    new = [parent for parent in out.parents if not parent.exists()]
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # not if there is anything in it by now
            for parent in new:
                parent.rmdir()
        raise


def _one_file(exporter: Exporter, source: ExportSource, out: Path, dtype: str, log: Log) -> Path:
    """The main file of the export alone, under the name that was asked for."""
    staging = out.parent / temporary_name("tmp", out.name)
    with contextlib.ExitStack() as cleaning:
        with atomic_folder(staging, called=out) as folder:
            main = exporter(source, folder, dtype, log).relative_to(folder)
        cleaning.callback(shutil.rmtree, staging, ignore_errors=True)
        others = sorted(path.name for path in staging.iterdir() if path.name not in (main.name, MANIFEST))
        try:
            os.rename(staging / main, out)
        except OSError as error:
            raise write_error(out, error) from error
    if others:
        them = "it" if len(others) == 1 else "them"
        log(f"{' and '.join(others)} left out: give a folder instead of {out.name} to have {them} too")
    return out
