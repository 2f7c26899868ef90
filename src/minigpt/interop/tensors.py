"""Weights of another format and ours: rules that say which of their tensors make one of ours, and back.

Each rule is exact in both directions, so that reading what was written gives the same bits. A model of another format
is a list of rules and a place where named tensors are (`TensorSource`); nothing here knows any format.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from minigpt.config import WorkError

Change = Callable[[Tensor], Tensor]
"""A change of one tensor, such as another order of its rows."""
READABLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Numbers that are what they say."""


class TensorSource(Protocol):
    """Named tensors in a file or several; each is read when it is asked for."""

    place: str
    """What error sentences call it: the path of a file or folder."""

    def names(self) -> Collection[str]:
        """The name of every tensor."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, without reading it."""

    def get(self, name: str) -> Tensor:
        """The tensor on the CPU, of whatever dtype it has there. `WorkError` if the file is damaged."""


@dataclass(frozen=True)
class Rule:
    """How one tensor of ours is made of theirs, and taken apart again."""

    ours: str
    theirs: tuple[str, ...]
    join: Callable[[list[Tensor]], Tensor]
    """Theirs, in that order, to ours."""
    split: Callable[[Tensor], list[Tensor]]
    """Ours to theirs. Also works on the meta device, which gives the shapes that theirs must have."""

    def changed(self, index: int, to_ours: Change, to_theirs: Change) -> "Rule":
        """The same rule with number `index` of theirs changed on the way in and changed back on the way out."""

        def join(parts: list[Tensor]) -> Tensor:
            return self.join([to_ours(part) if i == index else part for i, part in enumerate(parts)])

        def split(tensor: Tensor) -> list[Tensor]:
            return [to_theirs(part) if i == index else part for i, part in enumerate(self.split(tensor))]

        return replace(self, join=join, split=split)


def same(ours: str, theirs: str) -> Rule:
    """One tensor under two names."""
    return Rule(ours, (theirs,), lambda parts: parts[0], lambda tensor: [tensor])


def transposed(ours: str, theirs: str) -> Rule:
    """A matrix that they keep as (in, out), as GPT-2's `Conv1D` does."""
    return same(ours, theirs).changed(0, _transpose, _transpose)


def offset(ours: str, theirs: str, by: float = 1.0) -> Rule:
    """Ours is theirs plus a number: Gemma's norms multiply by 1 + weight.

    Only weights to which the number can be added without rounding come back as the same bits.
    """
    return same(ours, theirs).changed(0, lambda tensor: tensor.float() + by, lambda tensor: tensor - by)


def rows(ours: str, theirs: Sequence[str], sizes: Sequence[int]) -> Rule:
    """Ours has the rows (of a matrix, or the numbers of a vector) of theirs one below the other, `sizes` of each."""
    counts = list(sizes)
    return Rule(ours, tuple(theirs), torch.cat, lambda tensor: list(tensor.split(counts)))


def stacked(ours: str, theirs: Sequence[str], parts: int = 1) -> Rule:
    """Ours is a stack (n, rows, columns), as of experts; each entry has the rows of `parts` of theirs, equally many.

    With `parts=2` theirs are gate 0, up 0, gate 1, up 1, ...
    """

    def join(tensors: list[Tensor]) -> Tensor:
        return torch.stack([torch.cat(tensors[i : i + parts]) for i in range(0, len(tensors), parts)])

    def split(tensor: Tensor) -> list[Tensor]:
        return [part for entry in tensor.unbind() for part in entry.chunk(parts)]

    return Rule(ours, tuple(theirs), join, split)


def half_from_interleaved(tensor: Tensor, heads: int, rotary_dim: int | None = None) -> Tensor:
    """Rows of `heads` heads: pairs of rotating dimensions (0, 1), (2, 3), ... become (0, d/2), (1, d/2 + 1), ...

    tensor: (heads * head_dim, ...). Only the first `rotary_dim` rows of each head (None: all) change places. The former
    is the order of Meta's Llama, llama2.c and llama.cpp's `llama`; the latter ours and Hugging Face's.
    """
    head = tensor.unflatten(0, (heads, -1))
    dim = rotary_dim or head.size(1)
    turned = head[:, :dim].unflatten(1, (dim // 2, 2)).transpose(1, 2).flatten(1, 2)
    return torch.cat([turned, head[:, dim:]], dim=1).flatten(0, 1)


def interleaved_from_half(tensor: Tensor, heads: int, rotary_dim: int | None = None) -> Tensor:
    """The inverse of `half_from_interleaved`."""
    head = tensor.unflatten(0, (heads, -1))
    dim = rotary_dim or head.size(1)
    turned = head[:, :dim].unflatten(1, (2, dim // 2)).transpose(1, 2).flatten(1, 2)
    return torch.cat([turned, head[:, dim:]], dim=1).flatten(0, 1)


def to_ours(rules: Sequence[Rule], read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our tensors in fp32, one after the other, of theirs. `WorkError` for those that do not fit together."""
    for rule in rules:
        parts = [_numbers(name, read(name)) for name in rule.theirs]
        try:
            tensor = rule.join(parts).float().contiguous()
        except (RuntimeError, IndexError) as error:
            shapes = ", ".join(f"{name} {tuple(part.shape)}" for name, part in zip(rule.theirs, parts, strict=True))
            raise WorkError(f"tensors do not fit together to {rule.ours}: {shapes}") from error
        yield rule.ours, tensor


def _numbers(name: str, tensor: Tensor) -> Tensor:
    """The tensor itself. `WorkError` if its numbers mean nothing alone: whole ones and those of 8 bits need scales."""
    if tensor.dtype not in READABLE or tensor.layout != torch.strided or tensor.is_meta:
        kind = str(tensor.dtype if tensor.layout == torch.strided else tensor.layout).removeprefix("torch.")
        raise WorkError(
            f"the tensor {name} holds {'no' if tensor.is_meta else kind} numbers: minigpt reads fp32, bf16, fp16 and "
            "fp64, so give a model that is not quantised"
        )
    return tensor


def to_theirs(rules: Sequence[Rule], state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Their tensors, one after the other, of ours, which must all be there. `WorkError` for one that is missing."""
    for rule in rules:
        if rule.ours not in state:
            raise WorkError(f"the model has no tensor {rule.ours}")
        for name, tensor in zip(rule.theirs, rule.split(state[rule.ours]), strict=True):
            yield name, tensor.contiguous()


def check_source(
    rules: Sequence[Rule], expected: Mapping[str, Tensor], source: TensorSource, ignored: Sequence[str] = ()
) -> None:
    """`WorkError` naming the first of their tensors that is missing, unknown or misshapen, before anything is read.

    Args:
        rules: every tensor of ours.
        expected: our state on the meta device, for the shapes.
        source: their tensors.
        ignored: regular expressions for names that may be there and mean nothing (tables that older versions saved).
    """
    present = set(source.names())
    wanted = {name: tuple(tensor.shape) for name, tensor in to_theirs(rules, expected)}
    missing = [name for name in wanted if name not in present]
    if missing:
        raise WorkError(f"{source.place} does not fit its configuration: it lacks the tensor {listed(missing)}")
    spare = [name for name in sorted(present - wanted.keys()) if not any(re.fullmatch(rule, name) for rule in ignored)]
    if spare:
        raise WorkError(f"{source.place} does not fit its configuration: it has the unknown tensor {listed(spare)}")
    for name, shape in wanted.items():
        if source.shape(name) != shape:
            raise WorkError(
                f"{source.place} does not fit its configuration: the tensor {name} has the shape {source.shape(name)} "
                f"instead of {shape}"
            )


def listed(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def _transpose(tensor: Tensor) -> Tensor:
    return tensor.transpose(-1, -2)
