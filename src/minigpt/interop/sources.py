"""Places where named tensors are: safetensors files and PyTorch's, whole or in shards. None of them runs any code.

A safetensors file is mapped, so that a tensor is read when it is asked for. A PyTorch file is a pickle, which PyTorch's
restricted reader reads (`weights_only`): tensors and plain containers, nothing that is called.
"""

import json
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minigpt.config import RequestError, WorkError
from minigpt.interop.tensors import TensorSource, listed
from minigpt.storage.atomic import CorruptFolderError, read_error, reason

SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"
"""What follows the name of either where there are several files and a list of which tensor is in which."""
LFS = b"version https://git-lfs.github.com/"
"""The first bytes of the small file that Git leaves in the place of a large one which was not fetched."""


def open_folder(folder: Path) -> TensorSource:
    """The weights of a Hugging Face folder, safetensors before PyTorch's.

    Raises `RequestError` if there are none, `CorruptFolderError` if files are missing or damaged, and `WorkError` for a
    file that would run code.
    """
    for name, kind in ((SAFETENSORS, SafetensorsSource), (TORCH, TorchSource)):
        if (folder / name).is_file():
            return kind(folder / name)
        if (folder / (name + INDEX)).is_file():
            return _sharded(folder, name + INDEX, kind)
    raise RequestError(f"{folder} is not a whole model folder: it has neither {SAFETENSORS} nor {TORCH}")


class SafetensorsSource:
    """The tensors of one safetensors file."""

    def __init__(self, path: Path) -> None:
        self.place = str(path)
        self._path = path
        try:
            self._file: Any = safe_open(path, framework="pt")
            self._names = list(self._file.keys())
        except SafetensorError as error:
            raise _damaged(path, f"whole safetensors file ({error})") from error
        except OSError as error:
            raise read_error(path.parent, path.name, error) from error

    def names(self) -> Collection[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def get(self, name: str) -> Tensor:
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except SafetensorError as error:
            raise _damaged(self._path, f"whole safetensors file ({error})") from error
        return tensor


class TorchSource:
    """The tensors of one file of `torch.save`: a dictionary of them, or what is under `key` in it."""

    def __init__(self, path: Path, key: str | None = None) -> None:
        self.place = str(path)
        content = load_pickle(path)
        state = content.get(key) if key is not None and isinstance(content, dict) else content
        if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
            raise WorkError(f"{path} is not a file of named tensors")
        self._state = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}

    def names(self) -> Collection[str]:
        return self._state.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._state[name].shape)

    def get(self, name: str) -> Tensor:
        return self._state[name].detach()


class JoinedSource:
    """The tensors of several places as one."""

    def __init__(self, place: str, home: Mapping[str, TensorSource]) -> None:
        self.place, self._home = place, home

    def names(self) -> Collection[str]:
        return self._home.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._home[name].shape(name)

    def get(self, name: str) -> Tensor:
        return self._home[name].get(name)


class RenamedSource:
    """The tensors of a place under other names."""

    def __init__(self, source: TensorSource, names: Mapping[str, str]) -> None:
        """names: theirs by the new one."""
        self.place, self._source, self._names = source.place, source, names

    def names(self) -> Collection[str]:
        return self._names.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(self._names[name])

    def get(self, name: str) -> Tensor:
        return self._source.get(self._names[name])


def load_pickle(path: Path) -> Any:
    """The content of a file of `torch.save`, on the CPU: tensors and plain containers only.

    Raises `WorkError` for a file that holds anything else, which would run code, and `CorruptFolderError` for a
    damaged one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that it then refuses
            # Only the format since PyTorch 1.6, a zip archive, can be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise read_error(path.parent, path.name, error) from error
    except Exception as error:  # its refusals, and whatever else it makes of bytes that are no such file
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None or found[1].startswith("torch._utils."):  # which it knows, so this is the rest of a name
            raise _damaged(path, "whole file of PyTorch's that holds only tensors") from None
        raise WorkError(
            f"{path} is refused: reading it would run code of its own ({found[1]}); ask for the same weights as a "
            "safetensors file"
        ) from None


def _sharded(folder: Path, index: str, kind: type[SafetensorsSource] | type[TorchSource]) -> TensorSource:
    """The tensors of all the files that an index names."""
    try:
        places = json.loads((folder / index).read_bytes())["weight_map"]
        sound = isinstance(places, dict) and all(isinstance(file, str) for file in places.values())
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    except OSError as error:
        raise read_error(folder, index, error) from error
    if not sound:
        raise CorruptFolderError(folder, f"{index} is not a list of which tensor is in which file")
    files: dict[str, TensorSource] = {}
    for file in sorted(set(places.values())):
        if Path(file).name != file:
            raise WorkError(f"{folder / index} is refused: it names {file!r}, which is not a file beside it")
        if not (folder / file).is_file():
            raise CorruptFolderError(folder, f"{file} is missing, which {index} names")
        files[file] = kind(folder / file)
    lacking = [name for name, file in places.items() if name not in files[file].names()]
    if lacking:
        raise CorruptFolderError(
            folder, f"{places[lacking[0]]} lacks the tensor {listed(lacking)}, which {index} names"
        )
    return JoinedSource(str(folder), {name: files[file] for name, file in places.items()})


def _damaged(path: Path, expected: str) -> CorruptFolderError:
    """The sentence for a file that is not what its name says."""
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS))
    except OSError as error:
        return CorruptFolderError(path.parent, f"{path.name} cannot be read ({reason(error)})")
    if start == LFS:
        return CorruptFolderError(path.parent, f"{path.name} only says where the file is: fetch it with git lfs pull")
    return CorruptFolderError(path.parent, f"{path.name} is not a {expected}")
