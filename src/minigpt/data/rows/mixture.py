"""Which source each training row is drawn from: a pure function of (seed, index), exact within every block of batches.

The rows are cut into blocks of whole batches. In each block every source has the same number of rows, its share of the
block by its weight; which rows these are is a random permutation of its own for each block. So the proportions hold
exactly in every block, not only on average; the row of any index is found without the rows before it; and no process
needs to know how many others there are.

A stage changes the weights from a given row on. The block that it falls into is broken off there; how many rows of each
source have come by then is counted once, so that each source goes on where it was.
"""

import bisect
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigpt.config import DataConfig, RequestError

BLOCK_ROWS = 16384
"""Rows of a block at most, if a batch is not larger: rounding a share to whole rows is off by 1/32768 then."""


@dataclass(frozen=True)
class Stage:
    """Weights from `first_row` on. A block of `block_rows` rows holds `counts[i]` rows of source i."""

    first_row: int
    weights: tuple[float, ...]
    block_rows: int
    counts: tuple[int, ...]
    before: tuple[int, ...]
    """Rows of each source that come before the stage."""


class Mixture:
    """Rows of several sources.

    names: the sources' names. stages: (first row, weight of each source), the first one from row 0 on, ascending.
    batch_rows: rows in one optimizer step.
    """

    def __init__(
        self, names: Sequence[str], stages: Sequence[tuple[int, Sequence[float]]], *, batch_rows: int, seed: int
    ) -> None:
        self.names, self.seed = tuple(names), seed
        self.stages: list[Stage] = []
        self._firsts: list[int] = []
        self._block = lru_cache(maxsize=8)(self._make_block)
        for first_row, weights in stages:
            rows = block_rows(weights, batch_rows)
            before = self.counts(first_row)
            self.stages.append(Stage(first_row, tuple(weights), rows, tuple(block_counts(weights, rows)), before))
            self._firsts.append(first_row)

    def locate(self, index: int) -> tuple[int, int]:
        """(source, k): the row at `index` is the k-th of that source. k counts up without gaps as the index does."""
        number = bisect.bisect_right(self._firsts, index) - 1
        stage = self.stages[number]
        block, place = divmod(index - stage.first_row, stage.block_rows)
        sources, ranks = self._block(number, block)
        source = int(sources[place])
        return source, stage.before[source] + block * stage.counts[source] + int(ranks[place])

    def counts(self, rows: int) -> tuple[int, ...]:
        """How many of the first `rows` rows each source has."""
        if not rows:
            return (0,) * len(self.names)
        number = bisect.bisect_left(self._firsts, rows) - 1
        stage = self.stages[number]
        block, place = divmod(rows - stage.first_row, stage.block_rows)
        begun = np.bincount(self._block(number, block)[0][:place], minlength=len(self.names)).tolist()
        return tuple(b + block * c + p for b, c, p in zip(stage.before, stage.counts, begun, strict=True))

    def _make_block(self, number: int, block: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """(rows,) the source of each row of a block, and (rows,) its rank among the rows of that source."""
        stage = self.stages[number]
        name = f"minigpt mixture 1/{self.seed}/{stage.first_row}/{block}".encode()
        keys = np.frombuffer(hashlib.shake_128(name).digest(8 * stage.block_rows), "<u8")
        order = np.argsort(keys, kind="stable")  # a random permutation, the same with every version of every library
        sources = np.repeat(np.arange(len(stage.counts)), stage.counts)
        ranks = np.concatenate([np.arange(count) for count in stage.counts])
        shuffled, ranked = np.empty_like(sources), np.empty_like(ranks)
        shuffled[order] = sources
        ranked[np.argsort(shuffled, kind="stable")] = ranks
        return shuffled, ranked


def make_mixture(
    data: DataConfig, names: Sequence[str], weights: Sequence[float], *, batch_rows: int, seed: int,
    max_steps: int | None, first_row: Callable[[int], int] | None = None,
) -> Mixture:  # fmt: skip
    """The mixture that a config asks for; `weights` are those of the sources until the first of its stages.

    max_steps: the run's length; None leaves out stages that begin at a fraction of it. first_row: where the rows of a
    step begin; None: all steps before it have `batch_rows`. RequestError if a stage names no
    source or begins when the run is over, or two begin at the same step.
    """
    require_stage_names(data, names)
    stages = {0: tuple(weights)}
    last = 0
    for stage in data.stages:
        if stage.from_step is not None:
            step, said = stage.from_step, f"from_step={stage.from_step}"
        elif max_steps is not None:
            step = int(Fraction(str(stage.from_fraction)) * max_steps) + 1
            said = f"from_fraction={stage.from_fraction}, which is step {step}"
        else:
            continue
        if max_steps is not None and step > max_steps:
            raise RequestError(f"the stage of data.stages with {said} never begins: the run has {max_steps:,} steps")
        if step <= last:
            raise RequestError(
                f"the stage of data.stages with {said} does not begin after the one before it, at step {last:,}"
            )
        last = step
        begin = (step - 1) * batch_rows if first_row is None else first_row(step)
        stages[begin] = tuple(stage.weights.get(name, 0.0) for name in names)
    return Mixture(names, list(stages.items()), batch_rows=batch_rows, seed=seed)


def require_stage_names(data: DataConfig, names: Sequence[str]) -> None:
    """RequestError if a stage gives a weight to what is no source of `data.train`; it needs no text, so ask early."""
    for stage in data.stages:
        for name in stage.weights:
            if name not in names:
                known = ", ".join(names)
                raise RequestError(f"a stage of data.stages names {name!r}, but the sources of data.train are {known}")


def shares(weights: Sequence[float]) -> list[Fraction]:
    """The weights as exact shares of 1, each weight taken as the decimal number that was written."""
    exact = [Fraction(str(float(weight))) for weight in weights]
    total = sum(exact)
    return [weight / total for weight in exact]


def block_rows(weights: Sequence[float], batch_rows: int) -> int:
    """Rows of a block: the fewest whole batches in which all shares are whole rows, or else nearly so.

    With more than BLOCK_ROWS rows out of the question, it is the number that rounds the shares least.
    """
    wanted = [share for share in shares(weights) if share]
    exact = math.lcm(batch_rows, *(share.denominator for share in wanted))
    if exact <= max(BLOCK_ROWS, batch_rows):
        return exact
    least = -(-len(wanted) // batch_rows)  # batches that give every source a row
    rows = np.arange(least, max(least, BLOCK_ROWS // batch_rows) + 1)[:, None] * batch_rows
    quotas = rows * np.array([float(share) for share in wanted])  # (candidates, sources)
    with np.errstate(divide="ignore"):  # a share too small for a float
        errors = np.abs(np.maximum(1, np.rint(quotas)) / quotas - 1).max(axis=1)
    return int(rows[np.argmin(errors), 0])


def block_counts(weights: Sequence[float], rows: int) -> list[int]:
    """Whole rows of each source in a block: its share, rounded so that they add up; none of weight > 0 gets none."""
    quotas = [share * rows for share in shares(weights)]
    counts = [max(1, math.floor(quota)) if quota else 0 for quota in quotas]
    while (missing := rows - sum(counts)) != 0:  # as many turns as there are sources, at most
        step = 1 if missing > 0 else -1
        able = [i for i, count in enumerate(counts) if quotas[i] and count + step >= 1]
        counts[max(able, key=lambda i: step * (quotas[i] - counts[i]))] += step
    return counts
