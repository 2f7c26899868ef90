"""A model as a folder: `config.json`, `model.safetensors` and, where there is one, the tokenizer.

`config.json` holds `"model_type": "minigpt"`, a `format_version` and the fields of `ModelConfig` beside them. A
checkpoint is such a folder with more in it.

Folders of another model type are Hugging Face's: here they are only found, `minigpt.interop` reads them.

A part of the network that is a class of the user's own comes with its file, so that the folder can be moved and given
away. Whoever loads such a folder runs that file, and must say that this is all right (`require_trust`).
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError

from minigpt.config import ModelConfig, RequestError, extension
from minigpt.config.extension import Extension, anchored, portable, source
from minigpt.storage.atomic import CorruptFolderError, atomic_folder, read_error
from minigpt.storage.fs import write_file

if TYPE_CHECKING:
    import torch

    from minigpt.model import GPT

MODEL_TYPE = "minigpt"
FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer.bin")
"""The file by which a tokenizer is known, the first that is there: some have no tokenizer.json that says the same."""
TOKENIZER_PAIR = ("vocab.json", "merges.txt")
"""The two files that older Hugging Face folders have instead."""
FOREIGN_WEIGHTS = (WEIGHTS_FILE, f"{WEIGHTS_FILE}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""One of these holds a Hugging Face folder's weights, or says which files do; the first that is there is taken."""
_NOT_CONFIG = ("model_type", "format_version", "extra")


class SavesTokenizer(Protocol):
    """What storage needs of a tokenizer: it writes its own files."""

    def save(self, folder: Path) -> None:
        """Write one of TOKENIZER_FILES and what belongs to it into an existing folder."""


def save_model(
    folder: Path,
    model_config: ModelConfig,
    state: "Mapping[str, torch.Tensor]",
    tokenizer: SavesTokenizer | None,
    *,
    extra: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> None:
    """Publish a model folder with a manifest, whole or not at all (see `atomic_folder`).

    `state` has canonical names and tied tensors once; `extra` is kept in config.json for people and tools to read.
    """
    with atomic_folder(folder, replace=replace) as temporary:
        write_model(temporary, model_config, state, tokenizer, extra=extra)


def write_model(
    folder: Path,
    model_config: ModelConfig,
    state: "Mapping[str, torch.Tensor]",
    tokenizer: SavesTokenizer | None,
    *,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write the files of a model into an existing folder, for a caller that publishes it."""
    from minigpt.storage.tensors import save_tensors

    save_tensors(folder / WEIGHTS_FILE, state)
    write_description(folder, model_config, tokenizer, extra=extra)


def write_description(
    folder: Path,
    model_config: ModelConfig,
    tokenizer: SavesTokenizer | None,
    *,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write the files of a model but its weights."""
    if model_config.vocab_size is None:
        raise ValueError("model.vocab_size must be known before a model is saved")
    # init_from says where the weights came from, often a path of this machine; the folder has its own weights.
    fields = portable(model_config.model_dump(mode="json", exclude={"init_from"}))
    if isinstance(model_config.mlp, Extension):
        code = source(model_config.mlp)
        fields["mlp"]["sha256"] = hashlib.sha256(code).hexdigest()
        write_file(folder / model_config.mlp.path.name, code)
    content = {"model_type": MODEL_TYPE, "format_version": FORMAT_VERSION, **fields}
    if extra:
        content["extra"] = dict(extra)
    write_file(folder / CONFIG_FILE, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    if tokenizer is not None:
        tokenizer.save(folder)


def find_tokenizer(folder: Path) -> Path | None:
    """The file of the tokenizer in a model folder, to be loaded with what is beside it; None if it has none."""
    found = next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), None)
    if found is None and all((folder / name).is_file() for name in TOKENIZER_PAIR):
        return folder / TOKENIZER_PAIR[0]
    return found


def read_model_json(folder: Path) -> dict[str, Any]:
    """config.json as it is, of any model type; `RequestError` if the folder is no model folder."""
    path = folder / CONFIG_FILE
    if not folder.is_dir():
        raise RequestError(f"model folder {folder} does not exist")
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise RequestError(f"{folder} is not a model folder: it has no {CONFIG_FILE}") from error
    except OSError as error:
        raise read_error(folder, CONFIG_FILE, error) from error
    except (ValueError, RecursionError) as error:
        raise CorruptFolderError(folder, f"{CONFIG_FILE} is not JSON") from error
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise RequestError(f"{folder} is not a model folder: its {CONFIG_FILE} has no model_type")
    return content


def is_own(folder: Path) -> bool:
    """Whether a model folder is minigpt's, and not one of Hugging Face's; `RequestError` if it is no model folder."""
    return bool(read_model_json(folder)["model_type"] == MODEL_TYPE)


def load_model_config(folder: Path) -> ModelConfig:
    """The checked model section of config.json; `RequestError` for other kinds of folder and newer formats."""
    content = read_model_json(folder)
    if content["model_type"] != MODEL_TYPE:
        raise RequestError(
            f"{folder} is a Hugging Face '{content['model_type']}' folder, and this needs one of minigpt's own: make "
            "one of it with minigpt import"
        )
    version = content.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise RequestError(
            f"{folder} was written by a newer minigpt (format_version {version}, this one reads up to "
            f"{FORMAT_VERSION}): update minigpt"
        )
    if version != FORMAT_VERSION:
        raise RequestError(f"{folder}/{CONFIG_FILE} has format_version={version!r}, which no minigpt has written")
    try:
        fields = {key: value for key, value in content.items() if key not in _NOT_CONFIG}
        config = ModelConfig.model_validate(anchored(fields, folder))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        named = f"{key}={first['input']!r}: {said}" if key else said  # no key: a rule that says which ones it is about
        raise RequestError(f"{folder}/{CONFIG_FILE} is not usable: {named}") from error
    if config.vocab_size is None:
        raise RequestError(f"{folder}/{CONFIG_FILE} is not usable: it has no vocab_size")
    return config


def load_state(folder: Path, device: "str | torch.device" = "cpu") -> "dict[str, torch.Tensor]":
    """The weights by their canonical names; errors as `load_tensors`."""
    from minigpt.storage.tensors import load_tensors

    return load_tensors(folder / WEIGHTS_FILE, device)


def require_trust(folder: Path, trust_code: bool | None = None) -> None:
    """RequestError if loading the folder would run code of its own (see `minigpt.config.extension.require_trust`)."""
    if is_own(folder):  # no other kind can bring code along
        extension.require_trust([load_model_config(folder).mlp], f"the model {folder}", trust_code)


def build_model(folder: Path, device: "str | torch.device" = "cpu", trust_code: bool | None = None) -> "GPT":
    """The network that a model folder describes, with its weights, in evaluation mode; `require_trust` for its code."""
    require_trust(folder, trust_code)
    import torch

    from minigpt.model import GPT
    from minigpt.storage.tensors import load_state_into

    with torch.device("meta"):  # initial weights would only be drawn (from the caller's generator) and overwritten
        model = GPT(load_model_config(folder))
    model.to_empty(device="cpu")
    load_state_into(model, folder / WEIGHTS_FILE)
    return model.to(device).eval()
