"""The objective of a config: what the trainer is told about its rows, and classes of one's own on special rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minigpt.config import RequestError, load_config
from minigpt.data.dataset import TokenDataset
from minigpt.data.prepared import PreparedData, PreparedSource
from minigpt.objectives import PretrainObjective, make_objective
from minigpt.tokenizer import CharTokenizer

OWN = """
from minigpt import PretrainObjective

class Whole(PretrainObjective):
    def __init__(self, config, **given):
        super().__init__(**given)

class Maskless(Whole):
    def row(self, index):
        row = super().row(index)
        return {name: row[name] for name in ("ids", "targets")}

class Narrow(PretrainObjective):
    def __init__(self, config, *, train, validation, context_length, seed, tokenizer, validation_tokens):
        super().__init__(train, validation, context_length=context_length, seed=seed)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


def tokens(first_id: int) -> TokenDataset:
    starts = np.arange(0, 300, 12)
    return TokenDataset([np.arange(first_id, first_id + 300).astype(np.uint16)], 2000, "", starts=starts, name="it")


def objective(sources: int = 1, kind: str = "pretrain", max_steps: int | None = 50, **data: Any) -> Any:
    names = "abc"[:sources]
    train = [{"text": "x", "name": n, "weight": w} for n, w in zip(names, (2, 1, 1), strict=False)]
    tree = {
        "data": {"train": train if sources > 1 else {"text": "x"}} | data,
        "model": {"context_length": 8},
        "training": {"batch_tokens": 32, "max_steps": 50},
        "objective": {"kind": kind},
    }
    made = tuple(
        PreparedSource(n, tokens(500 * i + 1), None, w) for i, (n, w) in enumerate(zip(names, (2, 1, 1), strict=False))
    )
    prepared = PreparedData(made, tuple((name, tokens(500 * i + 1)) for i, name in enumerate(names)), "")
    return make_objective(load_config(tree)[0], prepared, CharTokenizer.from_texts(["x"]), max_steps)


def test_what_the_trainer_is_told_of_a_mixture() -> None:
    made = objective(3)
    assert made.source_names == ("a", "b", "c")
    assert made.rows_per_epoch == 3 * 36
    sources = [made.row_source(index) for index in range(200)]
    assert [int(made.row(index)["ids"][0]) // 500 for index in range(200)] == sources
    assert made.epochs(200) == [100 / 36, 50 / 36, 50 / 36]
    assert made.validation_sets == [("a", range(38)), ("b", range(38, 76)), ("c", range(76, 114))]
    assert made.validation_rows == 114
    assert [int(made.validation_row(row.start)["ids"][0]) for _, row in made.validation_sets] == [1, 501, 1001]
    assert made.stream is None


def test_one_source_is_no_mixture() -> None:
    made = objective()
    assert (made.source_names, made.row_source(5)) == ((), 0)
    plain = PretrainObjective(tokens(1), None, context_length=8, seed=made_seed())
    assert all((made.row(index)["ids"] == plain.row(index)["ids"]).all() for index in range(80))


def made_seed() -> int:
    return load_config({"data": {"train": {"text": "x"}}, "training": {"max_steps": 1}})[0].run.seed


@pytest.mark.parametrize(
    "data", [{"document_mask": True}, {"packing": "documents"}, {"shuffle": False}, {"shuffle_tokens": 100}]
)
def test_a_class_that_passes_everything_on_gets_the_rows_of_the_config(own: Path, data: dict[str, Any]) -> None:
    mine, built_in = objective(kind=f"{own}:Whole", **data), objective(**data)
    for index in (0, 7, 40):
        mine_row, row = mine.row(index), built_in.row(index)
        assert mine_row.keys() == row.keys()
        assert all((mine_row[name] == row[name]).all() for name in row)
    narrow = objective(kind=f"{own}:Narrow")  # as long as the rows are the plain ones
    assert narrow.rows_per_epoch == 36
    with pytest.raises(RequestError, match=f"so data.{next(iter(data))}=.* would have no effect"):
        objective(kind=f"{own}:Narrow", **data)


def test_a_class_of_its_own_rows_and_a_mixture(own: Path) -> None:
    assert objective(3, kind=f"{own}:Whole").source_names == ("a", "b", "c")
    with pytest.raises(RequestError, match=r"so the mixture of data\.train would have no effect"):
        objective(3, kind=f"{own}:Narrow")


def test_a_class_that_drops_the_mask(own: Path) -> None:
    with pytest.raises(RequestError, match="leaves document_ids out of its rows"):
        objective(kind=f"{own}:Maskless", document_mask=True)
