"""What stands before the numbers of a GGUF file: keys with values, and the names, shapes and places of its tensors.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian). Whatever a file
says about lengths is compared with what it has before anything of that length is made: files come from strangers, and
the reader of the package `gguf` would believe them.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigpt.interop.gguf.library import gguf_library

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
DIMENSIONS = 4  # at most
NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
"""numpy's names of the types of values, by GGUF's numbers; 8 is text, 9 a list."""
TEXT, LIST = 8, 9


@dataclass(frozen=True)
class TensorEntry:
    """A tensor as the file lists it."""

    shape: tuple[int, ...]
    """As torch has it: the file lists dimensions the other way round."""
    kind: Any
    """Type of its numbers, a `gguf.GGMLQuantizationType`."""
    data: NDArray[np.uint8]
    """Its bytes, mapped from the file, row by row: (..., bytes of a row)."""


class _Cursor:
    """Reads one thing after the other. ValueError: the file ends before, or says something impossible."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise ValueError(f"it ends before its byte {self.at + size}")
        self.at += size
        return self.data[self.at - size : self.at].tobytes()

    def whole(self, size: int = 8) -> int:
        return int.from_bytes(self.take(size), "little")

    def text(self) -> str:
        return self.take(self.whole()).decode()

    def value(self, kind: int) -> Any:
        """A value of that type; floats of 32 bits as the shortest numbers that are them."""
        if kind == TEXT:
            return self.text()
        if kind != LIST:
            return self.numbers(kind, 1)[0]
        inner, count = self.whole(4), self.whole()
        if inner != TEXT:
            return self.numbers(inner, count)
        if count > len(self.data) // 8:  # each has its length of 8 bytes before it
            raise ValueError(f"it ends before a list of {count} texts")
        return [self.text() for _ in range(count)]

    def numbers(self, kind: int, count: int) -> list[Any]:
        if kind not in NUMBERS:
            raise ValueError(f"a value has the unknown type {kind}")
        dtype = np.dtype(NUMBERS[kind])
        array = np.frombuffer(self.take(count * dtype.itemsize), dtype)
        return [float(str(number)) for number in array] if NUMBERS[kind] == "<f4" else array.tolist()


def read_header(data: NDArray[np.uint8]) -> tuple[dict[str, Any], dict[str, TensorEntry]]:
    """Keys and tensors of a file that is mapped into memory. ValueError: it is no whole GGUF file, with the reason."""
    cursor = _Cursor(data)
    if cursor.take(4) != MAGIC or cursor.whole(4) not in VERSIONS:
        raise ValueError(f"it does not begin as GGUF of version {' or '.join(map(str, VERSIONS))} does")
    tensor_count, key_count = cursor.whole(), cursor.whole()
    keys: dict[str, Any] = {}
    for _ in range(key_count):  # each takes some bytes, so this ends with the file
        name = cursor.text()
        if name in keys:
            raise ValueError(f"the key {name} comes twice")
        keys[name] = cursor.value(cursor.whole(4))
    listed = [_listed(cursor) for _ in range(tensor_count)]
    align = keys.get("general.alignment", ALIGNMENT)
    if not isinstance(align, int) or align < 1:
        raise ValueError(f"its alignment is {align!r}")
    start = -(-cursor.at // align) * align
    tensors: dict[str, TensorEntry] = {}
    for name, shape, kind, offset in listed:
        if name in tensors:
            raise ValueError(f"the tensor {name} comes twice")
        tensors[name] = _entry(data, name, shape, kind, start + offset)
    return keys, tensors


def _listed(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and place of a tensor."""
    name, dimensions = cursor.text(), cursor.whole(4)
    if not 1 <= dimensions <= DIMENSIONS:
        raise ValueError(f"the tensor {name} has {dimensions} dimensions")
    sizes = [cursor.whole() for _ in range(dimensions)]
    return name, tuple(reversed(sizes)), cursor.whole(4), cursor.whole()


def _entry(data: NDArray[np.uint8], name: str, shape: tuple[int, ...], kind: int, start: int) -> TensorEntry:
    library = gguf_library()
    known = library.GGMLQuantizationType(kind)  # ValueError for one that is not
    block, size = library.GGML_QUANT_SIZES[known]
    rows, rest = divmod(shape[-1], block)
    count = prod(shape[:-1]) * rows * size
    if rest or start + count > len(data):
        raise ValueError(f"the tensor {name} of shape {shape} does not fit into it")
    return TensorEntry(shape, known, data[start : start + count].reshape(*shape[:-1], rows * size))
