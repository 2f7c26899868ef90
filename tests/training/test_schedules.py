"""Schedules of batch, row length and window in real runs: the rows that are taken, and any stop and resume."""

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.config import Config, load_config
from minigpt.objectives import IGNORED, PretrainObjective, Row
from minigpt.training.pace import cut_rows
from minigpt.training.setup import steps_of

SCHEDULE = {
    "accumulation": [[0, 1], [2, 3]],
    "context_length": [[0, 4], [3, 16]],
    "window": [[0, 2], [4, 12]],
}
ROWS = [range(2), range(2, 4), range(4, 10), range(10, 16), range(16, 22), range(22, 28)]
"""Of each step, with micro-batches of two."""


def small(kit: Any, schedule: dict[str, Any], **training: Any) -> Config:
    """The usual small run, with dropout, with these schedules."""
    tree = kit.config(checkpoint__keep_last=9).model_dump(exclude_unset=True)
    tree["model"] |= {"attention_window": 12, "n_layer": 2, "window_pattern": "SL"}
    tree["schedule"] |= schedule
    tree["callbacks"] = {}
    tree["training"] |= training
    if "accumulation" in schedule:
        del tree["training"]["batch_tokens"]
    return load_config(tree)[0]


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 20), st.integers(0, 2**32))
def test_rows_cut_into_shorter_ones_hold_the_same(length: int, total: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    names = ("ids", "targets", "document_ids")
    row: Row = {name: draw.integers(0, 99, total) for name in names} | {"positions": np.arange(total)}
    pieces = cut_rows([row, row], length)
    for name in names:
        whole = np.concatenate([piece[name] for piece in pieces])
        assert np.array_equal(whole, np.concatenate([row[name], row[name]]))
    assert all(len(piece["ids"]) <= length for piece in pieces) and len(pieces) == 2 * -(-total // length)
    assert all(np.array_equal(piece["positions"], np.arange(len(piece["ids"]))) for piece in pieces)


def test_positions_that_begin_anew_stay_as_they_are_but_for_the_rest_of_the_one_before() -> None:
    row: Row = {"targets": np.full(7, IGNORED), "positions": np.array([0, 1, 2, 3, 4, 0, 1])}
    found = [piece["positions"].tolist() for piece in cut_rows([row], 3)]
    assert found == [[0, 1, 2], [0, 1, 0], [1 - 1]]
    padded: Row = {"targets": np.full(4, IGNORED), "positions": np.array([0, 1, -1, -1])}
    assert [piece["positions"].tolist() for piece in cut_rows([padded], 2)] == [[0, 1], [-1, -1]]


def test_each_step_takes_its_rows_in_its_lengths_with_its_window(kit, tmp_path: Path, monkeypatch) -> None:
    kit.train(kit.config(), tmp_path / "constant")
    usual = [line["train/lr"] for line in kit.metrics(tmp_path / "constant") if "train/loss" in line]
    made: list[int] = []
    passes: list[tuple[int, ...]] = []
    real_row, real_step = PretrainObjective.row, PretrainObjective.training_step

    def step(self: Any, model: Any, batch: Any) -> Any:
        window = model.blocks[0].attention.attend.training_window
        assert model.training_window == window and model.blocks[1].attention.attend.window is None
        passes.append((*batch["ids"].shape, window))
        return real_step(self, model, batch)

    monkeypatch.setattr(PretrainObjective, "row", lambda self, index: made.append(index) or real_row(self, index))
    monkeypatch.setattr(PretrainObjective, "training_step", step)
    assert kit.train(small(kit, SCHEDULE), tmp_path / "run").exit_status == 0
    assert made == [row for rows in ROWS for row in rows]
    assert passes == [(8, 4, 2)] * 2 + [(8, 4, 2)] * 3 + [(2, 16, 2)] * 3 + [(2, 16, 12)] * 6
    lines = [line for line in kit.metrics(tmp_path / "run") if "train/loss" in line]
    assert [line["tokens"] for line in lines] == [16 * rows.stop for rows in ROWS]
    assert [line["train/lr"] for line in lines] == usual


@pytest.mark.parametrize("unit", ["steps", "tokens"])
def test_it_goes_on_from_any_checkpoint_as_if_it_had_not_stopped(unit: str, kit, tmp_path: Path) -> None:
    scale = 1 if unit == "steps" else 48
    schedule = {key: [[begin * scale, size] for begin, size in pairs] for key, pairs in SCHEDULE.items()}
    config = small(kit, schedule | {"unit": unit}, z_loss=0.01, activation_checkpointing="selective")
    whole = tmp_path / "whole"
    kit.train(config, whole)
    for step in (2, 4):
        folder = tmp_path / str(step)
        kit.train(config, folder, resume=str(whole / "checkpoints" / f"step-{step:08}"))
        assert weights(folder) == weights(whole)
        logs = [[line for line in kit.metrics(run) if line["step"] > step] for run in (whole, folder)]
        assert logs[0] == logs[1]


def test_schedules_that_change_nothing_change_nothing(kit, tmp_path: Path) -> None:
    constant = {"accumulation": [[0, 2]], "context_length": [[0, 16]], "window": [[0, 12], [3, 12]]}
    kit.train(small(kit, {}), tmp_path / "without")
    kit.train(small(kit, constant), tmp_path / "with")
    assert weights(tmp_path / "with") == weights(tmp_path / "without")


def test_levels_of_checkpointing_are_the_same_run(kit, tmp_path: Path) -> None:
    for level in ("none", "full"):
        kit.train(small(kit, {}, activation_checkpointing=level), tmp_path / level)
    assert weights(tmp_path / "none") == weights(tmp_path / "full")


def test_the_z_loss_is_reported_beside_the_loss(kit, tmp_path: Path) -> None:
    kit.train(small(kit, {}, z_loss=0.5, max_steps=1), tmp_path / "with")
    kit.train(small(kit, {}, max_steps=1), tmp_path / "without")
    found, bare = (kit.metrics(tmp_path / run)[0] for run in ("with", "without"))
    assert found["train/loss"] == bare["train/loss"] and "train/z_loss" not in bare
    assert found["train/z_loss"] == pytest.approx(math.log(10) ** 2, rel=0.2)  # ten characters, about equally likely
    assert weights(tmp_path / "with") != weights(tmp_path / "without")


@pytest.mark.parametrize(
    ("length", "steps"), [({"max_tokens": 161}, 4), ({"max_tokens": 160}, 3), ({"max_tokens": 64}, 2)]
)
def test_a_length_in_tokens_counts_what_each_step_takes(length: dict[str, int], steps: int, kit) -> None:
    """Two steps of 32 tokens, and then of 96."""
    config = small(kit, SCHEDULE, max_steps=None, **length)
    assert steps_of(config, None) == steps


def test_a_stage_of_a_mixture_begins_at_its_step(kit, tmp_path: Path, monkeypatch) -> None:
    sources = [{"text": "ab" * 600, "weight": 1, "name": "a"}, {"text": "cd" * 600, "weight": 1, "name": "b"}]
    config = small(kit, {"accumulation": SCHEDULE["accumulation"]})
    stages = [{"from_step": 4, "weights": {"b": 1}}]
    data = config.data.model_validate({"train": sources, "stages": stages})
    taken: list[int] = []
    real = PretrainObjective.row_source
    monkeypatch.setattr(PretrainObjective, "row_source", lambda self, i: taken.append(real(self, i)) or taken[-1])
    kit.train(config.model_copy(update={"data": data}), tmp_path / "run")
    assert len(taken) == 28 and set(taken[:10]) == {0, 1} and set(taken[10:]) == {1}
