"""Whole tensors from parts and back, for random cuts, against plain slicing; the processes are threads here."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minigpt.parallel.exchange import Exchange, GroupLink, whole_tensors
from minigpt.parallel.world import World
from minigpt.storage.parts import Box, Part


class Threads:
    """A group of so many threads of this process."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.slots: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=20)

    def post(self, rank: int, value: Any) -> list[Any]:
        self.slots[rank] = value
        self.barrier.wait()
        values = list(self.slots)
        self.barrier.wait()
        return values

    def run(self, work: Callable[["ThreadLink"], Any]) -> list[Any]:
        results: list[Any] = [None] * self.size

        def one(rank: int) -> None:
            try:
                results[rank] = work(ThreadLink(self, rank))
            except BaseException as error:
                results[rank] = error
                self.barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results


class ThreadLink:
    def __init__(self, threads: Threads, rank: int) -> None:
        self.threads, self.rank, self.size = threads, rank, threads.size
        self.messages: list[int] = []

    def share(self, value: Any) -> list[Any]:
        return self.threads.post(self.rank, value)

    def all_to_all(self, values: Tensor, sent: list[int], received: list[int]) -> Tensor:
        assert values.numel() == sum(sent)
        self.messages.append(values.numel())
        mine = [chunks[self.rank] for chunks in self.threads.post(self.rank, values.split(list(sent)))]
        assert [chunk.numel() for chunk in mine] == list(received)
        return torch.cat(mine)


def shares(size: int, pieces: int) -> list[tuple[int, int]]:
    """As `torch.chunk` cuts, with empty ones at the end."""
    step = -(-size // pieces)
    return [(min(size, i * step), min(size, (i + 1) * step)) for i in range(pieces)]


def tensor_parallel(shape: tuple[int, ...], sections: list[int], dim: int, pieces: int, i: int) -> Part:
    """Each section of a fused tensor (queries, keys, values) cut along `dim`: one box a section."""
    boxes, start, at = [], 0, 0
    for section in sections:
        first, last = shares(section, pieces)[i]
        if first < last:
            offset, size, here = [0] * len(shape), list(shape), [0] * len(shape)
            offset[dim], size[dim], here[dim] = start + first, last - first, at
            boxes.append(Box(tuple(offset), tuple(size), tuple(here)))
        start, at = start + section, at + last - first
    local = list(shape)
    local[dim] = at
    return Part(shape, tuple(local), tuple(boxes))


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, dict[str, list[Part | None]], dict[str, int]]:
    """(processes, parts of each tensor by process (None: holds nothing of it), owners)."""
    rows, matrices, copies = draw(st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2)))
    size = rows * matrices * copies
    parts: dict[str, list[Part | None]] = {}
    for n in range(draw(st.integers(1, 4))):
        sections = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
        shape: list[int] = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
        dim = draw(st.integers(0, len(shape) - 1))
        shape[dim] = sum(sections)
        absent = draw(st.booleans()) and copies == 2  # as on another stage of a pipeline
        held: list[Part | None] = []
        for rank in range(size):
            copy, matrix, row = rank // (rows * matrices), rank // rows % matrices, rank % rows
            part = tensor_parallel(tuple(shape), sections, dim, matrices, matrix)
            part = part.rows(*shares(part.local[0], rows)[row])
            held.append(None if absent and copy == 1 else replace(part, copy=copy, copies=copies))
        parts[f"tensor{n}"] = held
    owners = {name: draw(st.integers(0, size - 1)) for name in parts}
    return size, parts, owners


@settings(max_examples=60, deadline=None)
@given(layouts(), st.one_of(st.none(), st.integers(1, 40)))
def test_collect_and_spread(layout, chunk):
    size, parts, owners = layout
    shapes = {name: next(part.shape for part in held if part is not None) for name, held in parts.items()}
    whole = {name: torch.randn(shape) for name, shape in shapes.items()}

    def work(link: ThreadLink) -> tuple[dict[str, Tensor], dict[str, Tensor], list[int]]:
        mine = {name: part for name, held in parts.items() if (part := held[link.rank]) is not None}
        exchange = Exchange(mine, owners, link, chunk=chunk)
        local = {name: part.cut(whole[name]) for name, part in mine.items()}
        collected = exchange.collect(local)
        spread = exchange.spread({name: 2 * tensor for name, tensor in collected.items()})
        for name, tensor in spread.items():
            assert torch.equal(tensor, 2 * local[name])
        some = list(owners)[::2]
        assert exchange.collect(local, some).keys() == {name for name in some if owners[name] == link.rank}
        return collected, spread, link.messages

    results = Threads(size).run(work)
    for rank, (collected, spread, messages) in enumerate(results):
        assert list(collected) == [name for name in owners if owners[name] == rank]
        assert all(torch.equal(tensor, whole[name]) for name, tensor in collected.items())
        assert spread.keys() == {name for name, held in parts.items() if held[rank] is not None}
        if chunk is None:
            assert len(messages) == 3
    if chunk is None:  # what is collected leaves its holders once, however many hold it
        total = sum(tensor.numel() for tensor in whole.values())
        assert sum(messages[0] for _, _, messages in results) == total


def test_one_process():
    exchange = Exchange({"a": Part.whole((2, 3))}, {"a": 0}, GroupLink(None))
    tensor = torch.randn(2, 3)
    assert torch.equal(exchange.collect({"a": tensor})["a"], tensor)
    assert torch.equal(exchange.spread({"a": tensor})["a"], tensor)
    assert dict(whole_tensors(World(), {}, {"a": tensor}, ["a"]))["a"].equal(tensor)


def test_dtype_of_what_travels():
    exchange = Exchange({"a": Part.whole((2,))}, {"a": 0}, GroupLink(None), dtype=torch.float64)
    assert exchange.collect({"a": torch.tensor([1, 2])})["a"].dtype == torch.float64


def test_a_tensor_that_nobody_holds():
    with pytest.raises(ValueError, match="no process holds a part of b"):
        Exchange({"a": Part.whole((2,))}, {"a": 0, "b": 0}, GroupLink(None))
