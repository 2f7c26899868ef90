"""Training and validation rows of a config: mixtures, packing, masks, order, as pure functions of the row's number."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.config import DataConfig, RequestError
from minigpt.data.dataset import TokenDataset
from minigpt.data.prepared import PreparedData, PreparedSource
from minigpt.data.rows.masks import IGNORED, PADDING
from minigpt.data.rows.order import WindowOrder
from minigpt.data.rows.training_rows import TrainingRows, ValidationRows, make_rows

EOT = 0
LENGTH = 8


def dataset(lengths: list[int], first_id: int = 1, *, ends: bool = True) -> TokenDataset:
    """Documents whose ids count up from `first_id`, each with end-of-text behind it, or none."""
    parts, starts, at = [], [], 0
    for length in lengths:
        starts.append(at)
        ids = np.arange(first_id, first_id + length)
        parts.append(np.append(ids, EOT) if ends else ids)
        first_id += length
        at += len(parts[-1])
    tokens = np.concatenate(parts).astype(np.uint32)
    return TokenDataset([tokens], 1 << 20, "x", starts=np.array(starts, np.int64), eot_id=EOT, name="the text")


def prepared(*sources: tuple[str, TokenDataset, float]) -> PreparedData:
    made = tuple(PreparedSource(name, tokens, None, weight) for name, tokens, weight in sources)
    return PreparedData(made, (), "")


def config(names: str = "", **data: Any) -> DataConfig:
    """Without names a single source, else a mixture."""
    train = [{"text": "x", "name": name, "weight": 1} for name in names] or [{"text": "x"}]
    return DataConfig.model_validate({"train": train} | data)


def rows_of(data: DataConfig, *sources: tuple[str, TokenDataset, float], seed: int = 3, **options: Any) -> TrainingRows:
    given = {"context_length": LENGTH, "seed": seed, "batch_rows": 4, "max_steps": 1000} | options
    return make_rows(prepared(*sources), data, **given)


def three(seed: int = 3, **options: Any) -> TrainingRows:
    """A mixture of three sources whose ids lie in different ranges, by 6 : 3 : 1."""
    sources = [("a", dataset([400], 1), 6.0), ("b", dataset([90], 10_000), 3.0), ("c", dataset([40], 20_000), 1.0)]
    return rows_of(config("abc"), *sources, seed=seed, **options)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_one_source_gives_the_windows_of_the_order() -> None:
    """What every run with a single text has always had, in the same order."""
    tokens = dataset([500])
    rows, order = rows_of(config(), ("a", tokens, 1.0)), WindowOrder(len(tokens), LENGTH, 3)
    assert rows.rows_per_epoch == order.windows_per_epoch
    assert rows.names == ()
    for index in range(0, 3 * order.windows_per_epoch, 7):
        window = tokens.tokens(start := order.window(index)[1], start + LENGTH + 1)
        assert same(rows.row(index), {"ids": window[:-1].astype(np.int64), "targets": window[1:].astype(np.int64)})


def test_a_mixture_is_exact_and_repeats_no_window_within_an_epoch() -> None:
    rows = three()
    (stage,) = rows.describe()
    assert stage == {
        "first_row": 0, "names": ["a", "b", "c"], "weights": [6.0, 3.0, 1.0], "counts": [12, 6, 2], "block_rows": 20,
    }  # fmt: skip
    seen: list[list[int]] = [[], [], []]
    for index in range(10_000 * 4):
        ids = rows.row(index)["ids"]
        source = int(ids[ids > 0][0]) // 10_000
        assert rows.source(index) == source
        seen[source].append(int(ids[-1] or ids[-2] + 1))
        if index % 20 == 19:
            assert [len(ids) * 10 for ids in seen] == [(index + 1) * share for share in (6, 3, 1)]
    for source, windows in zip(rows.sources, seen, strict=True):
        epoch = source.rows_per_epoch
        for first in range(0, len(windows) - epoch + 1, epoch):
            assert len(set(windows[first : first + epoch])) == epoch
    assert rows.epochs(40_000) == [len(ids) / s.rows_per_epoch for ids, s in zip(seen, rows.sources, strict=True)]


@settings(max_examples=25, deadline=None)
@given(step=st.integers(0, 10**6), seed=st.integers(0, 99), ranks=st.sampled_from([1, 2, 4]))
def test_the_same_batch_for_any_number_of_ranks_and_after_a_resume(step: int, seed: int, ranks: int) -> None:
    batch = [three(seed).row(step * 4 + i) for i in range(4)]
    for rank in range(ranks):
        resumed = three(seed)  # another process, which has seen nothing before
        for i in range(rank, 4, ranks):
            assert same(resumed.row(step * 4 + i), batch[i])


def test_sources_have_orders_of_their_own_whatever_their_place() -> None:
    a, b = ("a", dataset([200], 1), 1.0), ("b", dataset([200], 1000), 1.0)
    one, other = rows_of(config("ab"), a, b), rows_of(config("ba"), b, a)
    for k in range(20):
        assert same(one.sources[0].row(k), other.sources[1].row(k))
    starts = [[int(source.row(k)["ids"][0]) % 999 for k in range(20)] for source in one.sources]
    assert starts[0] != starts[1]


def test_too_many_epochs_are_refused_with_the_numbers() -> None:
    with pytest.raises(RequestError, match=r"takes 2,000 rows of b, which has 24: 83\.3 epochs, more than data\.max_e"):
        rows_of(config("ab", max_epochs=83), ("a", dataset([9000]), 1.0), ("b", dataset([200]), 1.0))
    rows_of(config("ab", max_epochs=84), ("a", dataset([9000]), 1.0), ("b", dataset([200]), 1.0))


def test_without_shuffling_the_text_comes_from_beginning_to_end() -> None:
    rows = rows_of(config(shuffle=False), ("a", dataset([100]), 1.0))
    read = np.concatenate([rows.row(k)["ids"] for k in range(12)])
    assert read.tolist() == list(range(1, 97))
    mixed = rows_of(config("ab", shuffle=False), ("a", dataset([100]), 1.0), ("b", dataset([100], 1000), 1.0))
    found = np.concatenate([mixed.row(k)["ids"] for k in range(24)])
    assert found[found < 1000].tolist() == list(range(1, 97))


DOCUMENTS = st.lists(st.integers(0, 20), min_size=1, max_size=30).filter(lambda lengths: sum(lengths) > LENGTH + 2)


def test_masked_windows_by_hand() -> None:
    """Documents 1 2 3 <end>, 4 5 <end>, 6 ... : a position belongs to the document of its target."""
    rows = rows_of(config(document_mask=True, shuffle=False), ("a", dataset([3, 2, 9]), 1.0))
    row = rows.row(0)
    assert row["ids"].tolist() == [1, 2, 3, EOT, 4, 5, EOT, 6]
    assert row["targets"].tolist() == [2, 3, EOT, 4, 5, EOT, 6, 7]
    assert row["document_ids"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert "positions" not in row  # the model restarts them by itself
    straight = rows_of(
        config(document_mask=True, shuffle=False, restart_positions=False), ("a", dataset([3, 2, 9]), 1.0)
    ).row(0)
    assert straight["positions"].tolist() == list(range(8))


def test_masked_windows_of_documents_that_have_no_end() -> None:
    """Nothing can predict a document's first token, so that is no target, and its position sees its own document."""
    tokens = dataset([3, 2, 9], ends=False)
    row = rows_of(config(document_mask=True, shuffle=False), ("a", tokens, 1.0)).row(0)
    assert row["ids"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert row["targets"].tolist() == [2, 3, IGNORED, 5, IGNORED, 7, 8, 9]
    assert row["document_ids"].tolist() == [0, 0, 0, 1, 1, 2, 2, 2]


@settings(max_examples=60, deadline=None)
@given(DOCUMENTS, st.booleans(), st.booleans(), st.integers(0, 5))
def test_packed_rows_hold_every_target_once(lengths: list[int], ends: bool, mask: bool, seed: int) -> None:
    tokens = dataset(lengths, ends=ends)
    rows = rows_of(config(packing="documents", document_mask=mask), ("a", tokens, 1.0), seed=seed)
    found: Counter[tuple[int, int]] = Counter()
    for index in range(rows.rows_per_epoch, 2 * rows.rows_per_epoch):
        row = rows.row(index)
        assert all(values.shape == (LENGTH,) and values.dtype == np.int64 for values in row.values())
        valid = row["targets"] != IGNORED
        found.update(zip(row["ids"][valid].tolist(), row["targets"][valid].tolist(), strict=True))
        if mask:
            assert (row["document_ids"][~valid] == PADDING).all()
            assert (row["document_ids"][valid] >= 0).all()
    ids = tokens.tokens(0, len(tokens)).astype(int)
    pairs = zip(range(1, len(ids)), ids[:-1].tolist(), ids[1:].tolist(), strict=True)
    starts = set(tokens.document_offsets.tolist())
    assert found == Counter((one, other) for at, one, other in pairs if ends or at not in starts)


def test_each_epoch_packs_the_same_rows_in_another_order() -> None:
    rows = rows_of(config(packing="documents"), ("a", dataset([5] * 200), 1.0))
    epochs = [[tuple(rows.row(e * rows.rows_per_epoch + k)["ids"]) for k in range(rows.rows_per_epoch)] for e in (0, 1)]
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])


def test_documents_without_tokens_are_passed_over_and_a_text_of_none_is_refused() -> None:
    rows = rows_of(config(packing="documents"), ("a", dataset([0, 3, 0, 0, 4, 0], ends=False), 1.0))
    assert rows.rows_per_epoch == 1
    with pytest.raises(RequestError, match="no document of the text has a token to predict"):
        rows_of(config(packing="documents"), ("a", dataset([1, 0, 1], ends=False), 1.0))


def test_packing_real_books_wastes_less_than_a_percent(test_data: Callable[[str], Path]) -> None:
    """Bytes as tokens, the books' own lengths, contexts of usual sizes."""
    import gzip

    text = gzip.decompress(test_data("classic_books/val.txt.gz").read_bytes())
    lengths = [len(book) for book in text.split(b"<|endoftext|>") if book.strip()]
    bounds = np.cumsum([0, *(length + 1 for length in lengths)])
    tokens = TokenDataset(
        [np.ones(bounds[-1], np.uint16)], 1 << 16, "x", starts=bounds[:-1].astype(np.int64), eot_id=1, name="books"
    )
    for length in (256, 1024, 4096):
        rows = rows_of(config(packing="documents"), ("a", tokens, 1.0), context_length=length)
        assert rows.wasted[0] < 0.01
        row = rows.row(5)
        assert (row["targets"] != IGNORED).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 60), min_size=1, max_size=4), st.one_of(st.none(), st.integers(1, 200)), st.booleans())
def test_validation_rows_by_source(sizes: list[int], limit: int | None, mask: bool) -> None:
    sets = [(f"s{i}", dataset([size], 1000 * i + 1, ends=False)) for i, size in enumerate(sizes)]
    made = ValidationRows(sets, config(document_mask=mask), context_length=LENGTH, max_tokens=limit)
    assert [name for name, _ in made.sets] == [name for name, _ in sets]
    assert [index for _, rows in made.sets for index in rows] == list(range(len(made)))
    for i, (_, rows) in enumerate(made.sets):
        targets = np.concatenate([made.row(index)["targets"] for index in rows])
        assert len(rows) >= 1
        assert {int(t) // 1000 for t in targets} == {i}
        assert len(set(targets.tolist())) == len(targets)
        if limit is None:
            assert sorted(targets.tolist()) == list(range(1000 * i + 2, 1000 * i + sizes[i] + 1))
        assert all(("document_ids" in made.row(index)) == mask for index in rows)
    if limit is not None:
        assert len(made) <= -(-limit // LENGTH) + len(sets) - 1  # each set has a row, however small it is


def test_what_a_store_needs_next_is_fetched_ahead() -> None:
    """While one stretch is being read, the next one is on its way, and is asked for once."""

    class Remote:
        asked: list[tuple[int, int]] = []  # noqa: RUF012

        def __len__(self) -> int:
            return 2000

        def __getitem__(self, wanted: slice) -> np.ndarray:
            return np.arange(wanted.start, wanted.stop).astype(np.uint16)

        def prefetch(self, start: int, stop: int) -> None:
            self.asked.append((start, stop))

    tokens = TokenDataset([Remote()], 1 << 16, "x", name="remote", stretch=200)
    rows = rows_of(config(), ("a", tokens, 1.0))
    starts = [int(rows.row(index)["ids"][0]) for index in range(rows.rows_per_epoch)]
    assert 8 <= len(Remote.asked) == len(set(Remote.asked)) <= 11
    for index, (start, stop) in enumerate(Remote.asked[:8]):
        later = starts[25 * index :]
        assert any(start <= at < stop for at in later)
    assert max(starts[:25]) - min(starts[:25]) <= 200 + LENGTH
