"""A model comes in: what every importer gives, which one reads what, and the one way into a model folder."""

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt import storage
from minigpt.config import ModelConfig, RequestError
from minigpt.interop.begin import KEY, begin_ids
from minigpt.storage.atomic import read_error
from minigpt.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

GGUF_MAGIC = b"GGUF"
LLAMA2C_BEGIN = 1  # run.c begins every text with it


@dataclass
class Imported:
    """A model of another format, as read."""

    config: ModelConfig
    """Its architecture, `vocab_size` set."""
    tensors: "Iterator[tuple[str, Tensor]]"
    """Every tensor by our name, fp32 on the CPU, one after the other; it can be gone through once."""
    tokenizer: Path | Tokenizer | None = None
    """Its tokenizer, or the file or folder of it, if it has one."""
    notes: list[str] = field(default_factory=list)
    """What people should know, one sentence each."""
    begin: tuple[int, ...] = ()
    """Ids that stand before every text that it knows (see `interop.begin`)."""


def import_model(
    source: str | Path,
    out: Path,
    *,
    tokenizer: str | Path | None = None,
    context_length: int | None = None,
    vocab_size: int | None = None,
    vocab_multiple: int | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> None:
    """Write a model folder of another program's model, whole or not at all.

    Args:
        source: a folder (Hugging Face's, or minigpt's own, to change its sizes), a GGUF file, llama2.c's .bin,
            nanoGPT's ckpt.pt, or a name on Hugging Face's hub.
        out: the folder to write, which must not exist.
        tokenizer: its tokenizer, if not the source's own.
        context_length, vocab_size, vocab_multiple: other sizes (see `interop.resize`).
        log: takes one line for people.

    Raises:
        RequestError: `out` exists, the source is no model or one that minigpt cannot run, sizes that are impossible.
        WorkError: the source is damaged or would run code, or `out` cannot be written.
    """
    from minigpt.interop.exporting import require_free
    from minigpt.interop.resize import resize

    require_free(out)
    given = load_tokenizer(tokenizer) if tokenizer is not None else None
    imported = read_model(source)
    for note in imported.notes:
        if given is None or "--tokenizer" not in note:
            log(note)
    config, tensors, notes = resize(
        imported.config,
        imported.tensors,
        context_length=context_length,
        vocab_size=vocab_size,
        vocab_multiple=vocab_multiple,
    )
    words = given or _own_tokenizer(imported, log)
    if words is not None and config.vocab_size is not None and words.vocab_size > config.vocab_size:
        raise RequestError(
            f"the tokenizer has {words.vocab_size:,} ids and the model only {config.vocab_size:,}: give its own with "
            f"--tokenizer, or more rows with --vocab-size {words.vocab_size}"
        )
    if words is None and not any("--tokenizer" in note for note in imported.notes):
        log("no tokenizer came with it: give one with --tokenizer, or use token ids in place of text")
    for note in notes:
        log(note)
    extra = {KEY: list(imported.begin)} if imported.begin else None
    storage.save_model(out, config, dict(tensors), words, extra=extra, replace=out.is_dir())


def read_model(source: str | Path) -> Imported:
    """The model of a folder, a file or a name on the hub; errors as `import_model`."""
    from minigpt.interop.huggingface.hub import PREFIX, hub_folder, is_name

    path = Path(source).expanduser()
    if path.is_dir() or str(source).startswith((".", "/", "~")):
        return _read_folder(path)
    if path.exists():
        return _read_folder(path)
    if not is_name(str(source)) or (path.suffix in (".gguf", ".bin", ".pt") and not str(source).startswith(PREFIX)):
        raise RequestError(f"model {source} does not exist")
    return _read_folder(hub_folder(str(source)))


def _read_folder(path: Path) -> Imported:
    from minigpt.interop.huggingface.reading import read_folder
    from minigpt.storage.checkpoint import CHECKPOINTS, POINTERS
    from minigpt.storage.model_folder import is_own

    pointer = path.name in POINTERS and path.parent.name == CHECKPOINTS
    if path.is_file() and not pointer:
        return _read_file(path)
    found = storage.resolve_model(path)
    if not is_own(found.path):
        return read_folder(found.path)
    tensors = iter(storage.load_state(found.path).items())
    return Imported(storage.load_model_config(found.path), tensors, found.tokenizer_path, begin=begin_ids(found.path))


def _read_file(path: Path) -> Imported:
    """The importer of a file, by what is in it, and only then by its name."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except OSError as error:
        raise read_error(path.parent, path.name, error) from error
    if magic == GGUF_MAGIC:
        from minigpt.interop.gguf.reading import import_gguf

        return Imported(*import_gguf(path))
    if path.suffix in (".pt", ".pth", ".ckpt") or (path.suffix == ".bin" and zipfile.is_zipfile(path)):
        from minigpt.interop.nanogpt import read_nanogpt

        return read_nanogpt(path)
    if path.suffix == ".bin":
        from minigpt.interop.llama2c import read_llama2c

        return replace(read_llama2c(path), begin=(LLAMA2C_BEGIN,))
    if path.suffix in (".safetensors", ".json"):
        return _read_folder(path.parent)
    raise RequestError(
        f"{path} is no model file that minigpt knows: it reads Hugging Face folders, GGUF, llama2.c's .bin and "
        "nanoGPT's ckpt.pt"
    )


def _own_tokenizer(imported: Imported, log: Callable[[str], None]) -> Tokenizer | None:
    """The tokenizer that came with the model; one that cannot be used is left out, with the reason."""
    if not isinstance(imported.tokenizer, Path):
        return imported.tokenizer
    try:
        return load_tokenizer(imported.tokenizer)
    except RequestError as error:
        log(f"without its tokenizer: {error}")
        return None
