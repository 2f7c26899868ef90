"""Whole tensors from the parts that processes hold, and back, by one all-to-all: each tensor has an owner that gets it.

Muon works so: every matrix is collected at its owner, which makes its update and spreads that. So does whatever needs
the whole network on one process, tensor by tensor.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor

from minigpt.parallel.parallel import Parallel
from minigpt.parallel.world import World
from minigpt.storage.parts import Box, Part, Shape, index

CHUNK_NUMBERS = 1 << 24
"""Numbers of whole tensors that travel at once (64 MB of fp32), for whoever takes them one after the other."""


class Link(Protocol):
    """How the processes of a group exchange things."""

    rank: int
    size: int

    def share(self, value: Any) -> list[Any]:
        """Every process's `value`, in the order of the ranks."""

    def all_to_all(self, values: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """What all send to this one: from `values` (1-D) go sent[i] to process i, and received[i] come from it."""


class GroupLink:
    """A process group; None stands for this process alone."""

    def __init__(self, group: Any) -> None:
        self.group, self.rank, self.size = group, 0, 1
        if group is not None:
            import torch.distributed as dist

            self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def share(self, value: Any) -> list[Any]:
        """Every process's `value`."""
        if self.group is None:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def all_to_all(self, values: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """What all send to this one."""
        if self.group is None:
            return values
        import torch.distributed as dist

        output = values.new_empty(sum(received))
        dist.all_to_all_single(output, values, list(received), list(sent), group=self.group)
        return output


@dataclass(frozen=True)
class _Piece:
    """A box of a tensor on its way between one of its holders and its owner."""

    name: str
    box: Box
    holder: int
    owner: int

    @property
    def count(self) -> int:
        """Numbers in it."""
        return math.prod(self.box.size)

    def of_whole(self, whole: Tensor) -> Tensor:
        """Its values in the whole tensor, a view."""
        return whole[index(self.box.offset, self.box.size)]

    def of_local(self, local: Tensor) -> Tensor:
        """Its values in the holder's own tensor, a view."""
        return local[index(self.box.at, self.box.size)]


class _Route:
    """One all-to-all: which pieces leave this process, and which arrive, in the order of the other process."""

    def __init__(self, pieces: list[_Piece], link: Link, to_owner: bool) -> None:
        ends = [(p.holder, p.owner) if to_owner else (p.owner, p.holder) for p in pieces]
        ranks = range(link.size)
        leaving = [[p for p, (a, b) in zip(pieces, ends, strict=True) if (a, b) == (link.rank, r)] for r in ranks]
        arriving = [[p for p, (a, b) in zip(pieces, ends, strict=True) if (a, b) == (r, link.rank)] for r in ranks]
        self.leaving, self.arriving = list(chain(*leaving)), list(chain(*arriving))
        self.sent = [sum(piece.count for piece in one) for one in leaving]
        self.received = [sum(piece.count for piece in one) for one in arriving]


class Exchange:
    """Between the parts of some tensors and their owners.

    Every process of the group makes it, and calls its methods, with the same owners in the same order.

    Args:
        parts: what this process holds of each tensor; those that it holds nothing of may be missing.
        owners: by name of the tensor: the rank, within the group, of the process that gets it whole.
        link: the processes: a group, by `GroupLink`.
        dtype, device: of what travels and of what comes out; the device must be one that the group's backend serves.
        chunk: how many numbers of whole tensors travel at once; None: all of them.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        owners: Mapping[str, int],
        link: Link,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        chunk: int | None = None,
    ) -> None:
        self.link, self.dtype, self.device, self.chunk = link, dtype, torch.device(device), chunk
        self.owners = dict(owners)
        self._held: list[dict[str, Part]] = link.share({name: parts[name] for name in owners if name in parts})
        self._shapes = {name: _shape(name, self._held) for name in owners}
        self._collecting: dict[tuple[str, ...], list[tuple[list[str], _Route]]] = {}
        self._spreading: dict[tuple[str, ...], list[tuple[list[str], _Route]]] = {}

    def collect(self, local: Mapping[str, Tensor], names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """This process's own parts to the whole tensors that it owns.

        names: which of the tensors, the same on every process; None: all.
        """
        return dict(self.stream(local, names))

    @torch.no_grad()
    def stream(self, local: Mapping[str, Tensor], names: Sequence[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """As `collect`, a chunk at a time. Every process must go to the end of it."""
        for chunk, route in self._routes(names, to_owner=True):
            own = [name for name in chunk if self.owners[name] == self.link.rank]
            whole = {name: self._empty(self._shapes[name]) for name in own}
            for piece, values in self._move(route, [piece.of_local(local[piece.name]) for piece in route.leaving]):
                piece.of_whole(whole[piece.name]).copy_(values)
            yield from whole.items()

    @torch.no_grad()
    def spread(self, whole: Mapping[str, Tensor], names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The whole tensors that this process owns to its own parts of all tensors; names as for `collect`."""
        local: dict[str, Tensor] = {}
        for chunk, route in self._routes(names, to_owner=False):
            own = self._held[self.link.rank]
            local |= {name: self._empty(own[name].local) for name in chunk if name in own}
            for piece, values in self._move(route, [piece.of_whole(whole[piece.name]) for piece in route.leaving]):
                piece.of_local(local[piece.name]).copy_(values)
        return local

    def _routes(self, names: Sequence[str] | None, *, to_owner: bool) -> list[tuple[list[str], _Route]]:
        """The all-to-alls, and the tensors of each; planned once."""
        planned, key = self._collecting if to_owner else self._spreading, tuple(self.owners if names is None else names)
        if key not in planned:
            planned[key] = []
            for chunk in _chunks({name: self._shapes[name] for name in key}, self.chunk):
                pieces = [
                    _Piece(name, box, holder, self.owners[name])
                    for name in chunk
                    for holder, one in enumerate(self._held)
                    for box in (one[name].boxes if name in one else ())
                ]
                planned[key].append((chunk, _Route(_once(pieces) if to_owner else pieces, self.link, to_owner)))
        return planned[key]

    def _move(self, route: _Route, leaving: list[Tensor]) -> Iterator[tuple[_Piece, Tensor]]:
        """Send the values of the pieces that leave; gives those that arrive with theirs."""
        flat = [values.to(self.device, self.dtype).reshape(-1) for values in leaving]
        received = self.link.all_to_all(torch.cat([self._empty((0,)), *flat]), route.sent, route.received)
        start = 0
        for piece in route.arriving:
            yield piece, received[start : start + piece.count].view(piece.box.size)
            start += piece.count

    def _empty(self, shape: Sequence[int]) -> Tensor:
        return torch.empty(tuple(shape), dtype=self.dtype, device=self.device)


def whole_tensors(
    world: World,
    parts: Mapping[str, Part],
    local: Mapping[str, Tensor],
    names: Sequence[str],
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors (CPU) on the main process, a few at a time; nothing on the others.

    Every process must call it and go to its end. names: all of them, in the same order everywhere; parts and local:
    those that this process holds, as plain tensors.
    """
    if world.size == 1:
        yield from ((name, local[name].detach().cpu()) for name in names)
        return
    yield from Exchange(
        parts, dict.fromkeys(names, 0), GroupLink(world.control), dtype=dtype, chunk=CHUNK_NUMBERS
    ).stream(local)


def whole_state(parallel: Parallel) -> Iterator[tuple[str, Tensor]]:
    """The network's whole weights and buffers (CPU) by name on the main process, nothing on the others.

    Every process must call it and go to its end. The tensors may be the network's own: copy what is kept.
    """
    local = {name: parallel.local(tensor) for name, tensor in parallel.model.state_dict().items()}
    here = parallel.parts.keys() == parallel.shapes.keys()
    if here and all(part.is_whole for part in parallel.parts.values()):  # the main process has all of it already
        if parallel.world.is_main:
            yield from ((name, tensor.cpu()) for name, tensor in local.items())
        return
    dtype = next(iter(local.values())).dtype
    yield from whole_tensors(parallel.world, parallel.parts, local, list(parallel.shapes), dtype)


def _shape(name: str, held: list[dict[str, Part]]) -> Shape:
    """Of the whole tensor."""
    for one in held:
        if name in one:
            return one[name].shape
    raise ValueError(f"no process holds a part of {name}")


def _once(pieces: list[_Piece]) -> list[_Piece]:
    """Of the pieces with the same values, one: from the owner itself, or else from the holders in turn."""
    copies: dict[tuple[str, Shape, Shape], list[_Piece]] = {}
    for piece in pieces:
        copies.setdefault((piece.name, piece.box.offset, piece.box.size), []).append(piece)
    return [
        next((piece for piece in same if piece.holder == piece.owner), same[i % len(same)])
        for i, same in enumerate(copies.values())
    ]


def _chunks(shapes: Mapping[str, Shape], chunk: int | None) -> list[list[str]]:
    """The names in order, as many together as make no more than `chunk` numbers, but at least one."""
    chunks: list[list[str]] = []
    room = 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        if not chunks or (chunk is not None and count > room):
            chunks.append([])
            room = chunk or 0
        chunks[-1].append(name)
        room -= count
    return chunks
