"""Named tensors in one or several safetensors files, whole or in pieces, of which one reads only what one needs.

A process of a run on many saves the pieces that it holds, in files of its own. Each piece is a tensor in the file under
its whole tensor's name, and the file says where it begins, under the key that `torch.distributed.checkpoint` has for
this: its `HuggingFaceStorageReader` reads these files too. A file that says nothing holds whole tensors.

Imports torch: the rest of storage imports this module only inside the functions that need it.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minigpt.config import RequestError
from minigpt.storage import fs
from minigpt.storage.atomic import CorruptFolderError, read_error
from minigpt.storage.parts import Shape

PLACES = "DCP_SHARDING_INFO"
"""In a file's metadata: JSON, by name the place in the whole tensor at which the file's piece begins."""
_OFFSETS = "saved_offsets"

MAPPED_BYTES = 2**26
"""Of files that are put together, about as much is mapped at a time (64 MiB)."""


@dataclass(frozen=True)
class _Piece:
    file: int
    offset: Shape
    size: Shape


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of some files by name. `files[name]` reads a whole one, `read` a box of one.

    On the CPU tensors that lie in a file as they are asked for are mapped from it: writing to them does not reach the
    disk.
    """

    def __init__(self, paths: Iterable[Path], device: str | torch.device = "cpu") -> None:
        """Reads the list of what there is.

        Raises `RequestError` if a file does not exist, `CorruptFolderError` if one is not a whole safetensors file or
        the pieces of a tensor are not all there.
        """
        self._paths, self._device = list(paths), device
        self._files: list[Any] = []
        self._pieces: dict[str, list[_Piece]] = {}
        self._types: dict[str, str] = {}
        for number, path in enumerate(self._paths):
            self._files.append(_open(path, device))
            self._list(number, path)
        self._shapes = {name: _bounds(pieces) for name, pieces in self._pieces.items()}
        for name, pieces in self._pieces.items():
            if sum(math.prod(piece.size) for piece in pieces) != math.prod(self._shapes[name]):
                path = self._paths[pieces[0].file]
                raise CorruptFolderError(path.parent, f"{path.name} and the files that belong to it do not make {name}")

    def _list(self, number: int, path: Path) -> None:
        file = self._files[number]
        try:
            places = json.loads((file.metadata() or {}).get(PLACES, "null"))
            for name in file.keys():  # noqa: SIM118  (no mapping, in spite of its methods)
                part = file.get_slice(name)
                size = tuple(part.get_shape())
                offset = tuple(places[name][_OFFSETS]) if places is not None else (0,) * len(size)
                if len(offset) != len(size) or any(first < 0 for first in offset):
                    raise ValueError(name)
                self._pieces.setdefault(name, []).append(_Piece(number, offset, size))
                if self._types.setdefault(name, part.get_dtype()) != part.get_dtype():
                    raise ValueError(name)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptFolderError(path.parent, f"{path.name} does not say where its pieces belong") from error

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name, (0,) * len(self._shapes[name]), self._shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._pieces))

    def __len__(self) -> int:
        return len(self._pieces)

    def __contains__(self, name: object) -> bool:
        return name in self._pieces

    def close(self) -> None:
        """Let go of the files, of which what was read counts as this process's memory; reading opens them again."""
        self._files = [None] * len(self._paths)

    def shape(self, name: str) -> Shape:
        """Of the whole tensor."""
        return self._shapes[name]

    def kind(self, name: str) -> str:
        """The data type by its name in the format: F32, BF16, I64, ..."""
        return self._types[name]

    def read(self, name: str, offset: Shape, size: Shape) -> Tensor:
        """The box of a tensor that begins at `offset`, put together of the pieces that have a share in it."""
        pieces = self._pieces[name]
        if len(pieces) == 1:
            return self._read(pieces[0], name, offset, size)
        box: Tensor | None = None
        for piece in pieces:
            first = tuple(max(a, b) for a, b in zip(offset, piece.offset, strict=True))
            last = tuple(min(a + m, b + n) for a, m, b, n in zip(offset, size, piece.offset, piece.size, strict=True))
            if all(a < b for a, b in zip(first, last, strict=True)):
                part = self._read(piece, name, first, tuple(b - a for a, b in zip(first, last, strict=True)))
                if part.shape == size:
                    return part
                if box is None:
                    box = torch.empty(size, dtype=part.dtype, device=part.device)
                box[tuple(slice(a - o, b - o) for a, b, o in zip(first, last, offset, strict=True))] = part
        return self._read(pieces[0], name, pieces[0].offset, (0,) * len(size)).new_empty(size) if box is None else box

    def _read(self, piece: _Piece, name: str, offset: Shape, size: Shape) -> Tensor:
        path = self._paths[piece.file]
        file = self._files[piece.file] = self._files[piece.file] or _open(path, self._device)
        try:
            if size == piece.size:
                return file.get_tensor(name)
            place = tuple(slice(a - b, a - b + n) for a, b, n in zip(offset, piece.offset, size, strict=True))
            return file.get_slice(name)[place]
        except SafetensorError as error:
            raise CorruptFolderError(path.parent, f"{path.name} is not a whole safetensors file ({error})") from error
        except OSError as error:
            raise read_error(path.parent, path.name, error) from error


@dataclass(frozen=True)
class Entry:
    """A tensor, or a piece of one, that is to be written."""

    kind: str
    """The data type by its name in the format."""
    shape: Shape
    read: Callable[[], Tensor]
    """Gives it (CPU) when its turn comes."""
    offset: Shape | None = None
    """Of a piece: where it begins in the whole tensor."""


def write_entries(path: Path, entries: Mapping[str, Entry]) -> None:
    """Write a new file of tensors, with one in memory at a time. Raises `OSError` as any write does."""
    ordered = sorted(entries.items(), key=lambda item: (_ORDER[item[1].kind], item[0]))
    places = {name: {_OFFSETS: entry.offset} for name, entry in ordered if entry.offset is not None}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"} | ({PLACES: json.dumps(places)} if places else {})}
    end = 0
    for name, entry in ordered:
        start, end = end, end + TYPES[entry.kind].itemsize * math.prod(entry.shape)
        header[name] = {"dtype": entry.kind, "shape": entry.shape, "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)

    def chunks() -> Iterator[bytes | memoryview]:
        yield len(encoded).to_bytes(8, "little") + encoded
        for _, entry in ordered:
            yield entry.read().contiguous().reshape(-1).view(torch.uint8).numpy().data

    fs.write_chunks(path, chunks())


def write_whole(path: Path, files: TensorFiles) -> None:
    """Write all tensors of some files, whole, to one new file. Memory and errors as `write_entries`.

    What was read of a mapped file counts as this process's memory until the file is closed, so they are now and then.
    """
    mapped = 0

    def read(name: str) -> Tensor:
        nonlocal mapped
        if mapped > MAPPED_BYTES:
            files.close()
            mapped = 0
        tensor = files[name]
        mapped += tensor.nbytes
        return tensor

    write_entries(path, {name: Entry(files.kind(name), files.shape(name), partial(read, name)) for name in files})


TYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn, "I16": torch.int16, "F16": torch.float16, "BF16": torch.bfloat16,
    "I32": torch.int32, "F32": torch.float32, "F64": torch.float64, "I64": torch.int64,
}  # fmt: skip
"""The data types by their names in the format, in the order in which its own library writes them, from the last on."""

_ORDER = {kind: -number for number, kind in enumerate(TYPES)}


def _open(path: Path, device: str | torch.device) -> Any:
    if not path.is_file():
        raise RequestError(f"{path} does not exist")
    try:
        return safe_open(path, framework="pt", device=str(device))
    except SafetensorError as error:
        raise CorruptFolderError(path.parent, f"{path.name} is not a whole safetensors file ({error})") from error
    except OSError as error:
        raise read_error(path.parent, path.name, error) from error


def _bounds(pieces: list[_Piece]) -> Shape:
    """The shape of a tensor of which these are all the pieces."""
    ends = [tuple(a + n for a, n in zip(piece.offset, piece.size, strict=True)) for piece in pieces]
    return tuple(max(sizes) for sizes in zip(*ends, strict=True))
