"""An even sample of a long text."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.config import DataConfig
from minigpt.data import iter_training_text
from minigpt.data.preparing.sampling import sample_texts


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 3000), max_size=60),
    words=st.booleans(),
    characters=st.integers(1, 60_000),
)
def test_so_many_characters_in_order_or_all(lengths: list[int], words: bool, characters: int) -> None:
    numbers = itertools.count(1)
    texts = ["".join(f"{next(numbers):07}{' ' * words}" for _ in range(length // 8)) for length in lengths]
    sample = list(sample_texts(texts, characters))
    whole = "".join(texts)
    if len(whole) <= characters:
        assert "".join(sample) == whole
        return
    found = sum(map(len, sample))
    assert 0.8 * characters - 200 <= found <= 1.2 * characters + 200  # whole stretches of 64 characters or more
    at = -1
    for part in filter(None, sample):
        at = whole.index(part, at + 1)  # parts of the text, in order
    assert sample == list(sample_texts(iter(texts), characters))


@pytest.mark.parametrize("documents", [1, 700])
def test_spread_evenly(documents: int) -> None:
    """Of each tenth of the text a tenth of the sample."""
    words = [f"{n:06}" for n in range(140_000)]
    size = len(words) // documents
    texts = [" ".join(words[start : start + size]) for start in range(0, len(words), size)]
    found = [int(word) for text in sample_texts(texts, 100_000) for word in text.split() if len(word) == 6]
    tenths = [sum(n // 14_000 == tenth for n in found) / len(found) for tenth in range(10)]
    assert len(found) == pytest.approx(100_000 / 7, rel=0.05)
    assert all(share == pytest.approx(0.1, abs=0.02) for share in tenths), tenths


def test_memory_is_that_of_the_sample() -> None:
    """Texts are let go of: at most about twice the sample, and the text at hand, is held at any time."""
    alive = 0
    most = 0

    class Text(str):
        def __getitem__(self, part: object) -> str:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return Text(str(self)[part])  # type: ignore[index]

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def texts() -> Iterator[str]:
        nonlocal alive
        for n in range(20_000):
            alive += 1
            yield Text(f"{n:099} ")

    read: list[int] = []
    sample = list(sample_texts(texts(), 10_000, read.append))
    assert sum(map(len, sample)) == pytest.approx(10_000, rel=0.1)
    assert most <= 2 * 2 * 10_000 / 100 + 10 and read[-1] == 2_000_000


def test_of_the_training_text_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("train " * 10_000 + "valid " * 1_111)
    data = DataConfig(train=[str(tmp_path / "a.txt")], val_fraction=0.1)
    stages: list[tuple[str, int]] = []
    sample = "".join(
        iter_training_text(
            data, sample_characters=6_000, on_progress=lambda stage, done, _: stages.append((stage, done))
        )
    )
    assert len(sample) == pytest.approx(6_000, rel=0.1) and "valid" not in sample
    assert max(done for stage, done in stages if stage.startswith("sample")) == pytest.approx(60_000, rel=0.01)
