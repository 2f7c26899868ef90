"""Mixtures: exact proportions in every block, every row once, the same for any dealing out and from any step on."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from minigpt.config import DataConfig, RequestError
from minigpt.data.rows.mixture import BLOCK_ROWS, Mixture, block_counts, block_rows, make_mixture
from minigpt.data.rows.names import source_names

WEIGHTS = st.lists(st.one_of(st.integers(1, 400), st.decimals("0.01", "50", places=2)), min_size=1, max_size=6)


def test_ten_thousand_steps_of_three_sources_are_exact_in_every_block() -> None:
    names, weights, batch_rows = ["web", "books", "code"], [0.7, 0.2, 0.1], 32
    mixture = Mixture(names, [(0, weights)], batch_rows=batch_rows, seed=7)
    rows = mixture.stages[0].block_rows
    assert rows == 160  # the fewest batches of 32 rows in which 7/10, 2/10 and 1/10 are whole rows
    located = [mixture.locate(i) for i in range(10_000 * batch_rows)]
    assert len(located) % rows == 0
    for first in range(0, len(located), rows):
        block = [source for source, _ in located[first : first + rows]]
        assert [block.count(source) for source in range(3)] == [112, 32, 16]
    for source in range(3):
        assert [k for s, k in located if s == source] == list(range(len(located) * (7, 2, 1)[source] // 10))


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, st.integers(1, 64), st.integers(0, 2**64))
def test_a_block_has_the_shares_of_the_weights(weights: list[float], batch_rows: int, seed: int) -> None:
    rows, total = block_rows(weights, batch_rows), sum(map(Fraction, map(str, map(float, weights))))
    counts = block_counts(weights, rows)
    exact = [Fraction(str(float(weight))) / total * rows for weight in weights]
    assert sum(counts) == rows
    assert rows % batch_rows == 0
    assert rows <= BLOCK_ROWS
    for count, share in zip(counts, exact, strict=True):
        assert count == 1 > share or abs(count - share) < len(weights)
    smaller = next((r for r in range(batch_rows, BLOCK_ROWS, batch_rows) if _exact(weights, r)), None)
    assert smaller is None or (rows == smaller and counts == exact)
    if rows < 2000:
        mixture = Mixture([str(i) for i in range(len(weights))], [(0, weights)], batch_rows=batch_rows, seed=seed)
        second = [mixture.locate(i) for i in range(rows, 2 * rows)]
        assert [sum(s == i for s, _ in second) for i in range(len(weights))] == counts


@pytest.mark.filterwarnings("error")
def test_weights_far_apart() -> None:
    for weights in ([1e-9, 1e9], [1e-300, 1e300], [1e300, 1, 1e-300]):
        rows = block_rows(weights, 16)
        counts = block_counts(weights, rows)
        assert sum(counts) == rows and min(counts) >= 1


def _exact(weights: list[float], rows: int) -> bool:
    hundredths = [round(float(weight) * 100) for weight in weights]
    return all(weight * rows % sum(hundredths) == 0 for weight in hundredths)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 200), st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any)), max_size=4
    ),
    st.lists(st.integers(1, 5), min_size=3, max_size=3),
    st.sampled_from([1, 4, 12]),
)
def test_stages_take_over_exactly(stages: list[tuple[int, list[int]]], first: list[int], batch_rows: int) -> None:
    """Every row of every source comes once and in order, whatever the stages; counts() agrees with counting."""
    starts = dict.fromkeys(sorted({step for step, _ in stages}))
    table = [(0, first)] + [(start * batch_rows, w) for start, (_, w) in zip(starts, stages, strict=False)]
    mixture = Mixture(["a", "b", "c"], table, batch_rows=batch_rows, seed=3)
    counts = [0, 0, 0]
    for index in range(250 * batch_rows):
        source, k = mixture.locate(index)
        assert k == counts[source]
        weights = [weights for start, weights in table if start <= index][-1]
        assert weights[source] > 0
        counts[source] += 1
        if index % 7 == 0:
            assert mixture.counts(index + 1) == tuple(counts)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**12), st.integers(0, 2**32), st.sampled_from([1, 2, 4]))
def test_ranks_and_resumed_runs_see_the_same_rows(step: int, seed: int, ranks: int) -> None:
    """A row depends on its index alone: asked for alone, in any order, by any rank, after a resume at any step."""
    stages = [(0, [3, 1, 1]), (8000, [1, 1, 2])]
    whole = Mixture(["a", "b", "c"], stages, batch_rows=8, seed=seed)
    batch = [whole.locate(step * 8 + i) for i in range(8)]
    resumed = [Mixture(["a", "b", "c"], stages, batch_rows=8, seed=seed) for _ in range(ranks)]
    dealt = [[mixture.locate(step * 8 + i) for i in range(rank, 8, ranks)] for rank, mixture in enumerate(resumed)]
    assert [dealt[i % ranks][i // ranks] for i in range(8)] == batch


def test_weights_that_no_small_block_can_hold_come_close() -> None:
    """C4, wikitext, bookcorpus and multi_news at 305/3/37.8/4.2: 1/1750 of them at least, in batches of 32 rows."""
    weights = [305, 3, 37.8, 4.2]
    rows = block_rows(weights, 32)
    counts = block_counts(weights, rows)
    for count, weight in zip(counts, weights, strict=True):
        assert count == pytest.approx(rows * weight / 350, rel=2e-3)


def test_a_tiny_weight_is_not_rounded_away() -> None:
    rows = block_rows([1, 1e-9], 8)
    assert block_counts([1, 1e-9], rows)[1] == 1


def test_more_sources_than_rows_of_a_batch() -> None:
    weights = [1 / 7, 0.1, 2**0.5, 3, 5, 0.3]
    rows = block_rows(weights, 2)
    assert min(block_counts(weights, rows)) >= 1


def test_every_seed_and_block_has_an_order_of_its_own() -> None:
    def block(seed: int, number: int) -> tuple[int, ...]:
        mixture = Mixture(["a", "b"], [(0, [1, 1])], batch_rows=64, seed=seed)
        return tuple(mixture.locate(number * 64 + i)[0] for i in range(64))

    assert len({block(seed, number) for seed in range(4) for number in range(4)}) == 16


def config(**data: object) -> DataConfig:
    return DataConfig.model_validate({"train": [{"text": "x", "name": "a"}, {"text": "y", "name": "b"}]} | data)


def made(data: DataConfig, max_steps: int | None = 100) -> Mixture:
    return make_mixture(data, ["a", "b"], [1.0, 1.0], batch_rows=4, seed=0, max_steps=max_steps)


def test_stages_by_step_and_by_fraction() -> None:
    """A stage from step n begins with row (n - 1) * batch_rows; a fraction says how much of the run comes before it."""
    data = config(stages=[{"from_step": 11, "weights": {"a": 1}}, {"from_fraction": 0.29, "weights": {"b": 3, "a": 1}}])
    mixture = made(data)
    assert [stage.first_row for stage in mixture.stages] == [0, 40, 29 * 4]
    assert [stage.weights for stage in mixture.stages] == [(1, 1), (1, 0), (1, 3)]
    assert {mixture.locate(i)[0] for i in range(40, 29 * 4)} == {0}
    from_the_start = made(config(stages=[{"from_step": 1, "weights": {"b": 1}}]))
    assert [stage.weights for stage in from_the_start.stages] == [(0, 1)]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"from_step": 101, "weights": {"a": 1}}], "from_step=101 never begins: the run has 100 steps"),
        ([{"from_step": 5, "weights": {"c": 1}}], "names 'c', but the sources of data.train are a, b"),
        (
            [{"from_fraction": 0.5, "weights": {"a": 1}}, {"from_step": 51, "weights": {"b": 1}}],
            "from_step=51 does not begin after the one before it, at step 51",
        ),
    ],
)
def test_stages_that_cannot_be(stages: list[dict[str, object]], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        made(config(stages=stages))


def test_names_of_sources() -> None:
    sources = [
        "data/web/", "data/books.v2.txt.gz", {"path": "x.txt", "name": "books.v2"}, "shelf/*.jsonl",
        "more/books.v2.csv", "hub:HuggingFaceFW/fineweb-edu", "https://host/c4/part-{000..013}.json.gz?download=true",
        "demo:stories", {"text": "abc"}, "s3://bucket/tokens/code/", "own.py:MySource", {"path": "***.txt"},
    ]  # fmt: skip
    names = source_names(DataConfig.model_validate({"train": sources}).train or [])
    assert names == [
        "web", "books.v2-2", "books.v2", "shelf", "books.v2-3", "fineweb-edu", "part", "stories", "text", "code",
        "MySource", "path",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": [{"text": "x", "name": "a"}, {"text": "y", "name": "a"}]}, "two sources are called a"),
        ({"packing": "documents", "shuffle": False}, "brings documents into another order"),
        ({"train": [{"text": "x", "weight": 0}]}, "greater than 0"),
        ({"train": [{"text": "x", "weight": -1}]}, "greater than 0"),
        ({"stages": [{"from_step": 5, "weights": {"a": -1, "b": 1}}]}, "the weight of a in a stage is -1.0"),
        ({"stages": [{"from_step": 5, "weights": {"a": 0}}]}, "at least one source with a weight above 0"),
    ],
)
def test_configs_that_cannot_be(data: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**data)
