"""Which part of each whole tensor a process holds, whatever cut it there: the one description that saving, loading,
gathering and the optimizers share.

A part is made of boxes, since a process may hold several pieces of one tensor: a share of the query heads, of the key
heads and of the value heads of one fused matrix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Box:
    """A rectangular piece of a whole tensor, and where its values lie in the process's own tensor."""

    offset: Shape
    """Where it begins in the whole tensor."""
    size: Shape
    at: Shape
    """Where it begins in the local tensor."""


@dataclass(frozen=True)
class Part:
    """What one process holds of one tensor."""

    shape: Shape
    """Of the whole tensor."""
    local: Shape
    """Of the process's own tensor."""
    boxes: tuple[Box, ...]
    copy: int = 0
    """Of the processes that hold exactly the same, which one this is; number 0 is the one that saves it."""
    copies: int = 1
    """How many processes hold exactly the same."""

    @classmethod
    def whole(cls, shape: Sequence[int], copy: int = 0, copies: int = 1) -> "Part":
        """All of a tensor."""
        size, zero = tuple(shape), (0,) * len(shape)
        return cls(size, size, (Box(zero, size, zero),), copy, copies)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing and nothing is moved."""
        return self == Part.whole(self.shape, self.copy, self.copies)

    def rows(self, start: int, stop: int) -> "Part":
        """The part of which only the local rows from `start` to `stop` (exclusive) are kept."""
        kept = []
        for box in self.boxes:
            first, last = max(start, box.at[0]), min(stop, box.at[0] + box.size[0])
            if first < last:
                skipped = first - box.at[0]
                kept.append(
                    Box(
                        (box.offset[0] + skipped, *box.offset[1:]),
                        (last - first, *box.size[1:]),
                        (first - start, *box.at[1:]),
                    )
                )
        return replace(self, local=(stop - start, *self.local[1:]), boxes=tuple(kept))

    def take(self, read: Callable[[Shape, Shape], Tensor], like: Tensor) -> Tensor:
        """The local tensor, with the dtype and device of `like`: read(offset, size) gives a box of the whole one."""
        local = torch.zeros(self.local, dtype=like.dtype, device=like.device)
        for box in self.boxes:
            local[index(box.at, box.size)] = read(box.offset, box.size).to(like.dtype).to(like.device)
        return local

    def cut(self, whole: Tensor) -> Tensor:
        """The local tensor of a whole one."""
        return self.take(lambda offset, size: whole[index(offset, size)], whole)

    def put(self, local: Tensor, whole: Tensor) -> None:
        """Write the local values where they belong in the whole tensor."""
        for box in self.boxes:
            whole[index(box.offset, box.size)] = local[index(box.at, box.size)].to(whole.dtype).to(whole.device)


def index(start: Shape, size: Shape) -> tuple[slice, ...]:
    """What picks the rectangle that begins at `start` out of a tensor."""
    return tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))
