"""A step whose loss or gradient is not finite changes nothing but the journal; too many in a row are undone."""

import json
import math
import shutil

import pytest
import torch

from minigpt.config import WorkError
from minigpt.objectives import IGNORED, PretrainObjective
from minigpt.storage import list_checkpoints, load_checkpoint
from minigpt.training import Callback
from minigpt.training.journal import RowJournal

ROWS = 4  # rows of a step in the kit's config: step s trains on rows 4(s-1) ... 4(s-1)+3


@pytest.fixture
def poison(monkeypatch):
    """`poison(rows, kind)` makes these training rows give a NaN loss, an infinite gradient, or no valid target.

    Returns the list of all row numbers whose loss was asked for, in order.
    """

    def spoil(rows, kind="loss"):
        trained = []
        make, training_step = PretrainObjective.row, PretrainObjective.training_step

        def row(self, index):
            made = make(self, index)
            made["number"] = made["targets"] * 0 + index
            if kind == "targets" and index in rows:
                made["targets"] = made["targets"] * 0 + IGNORED
            return made

        def step(self, model, batch):
            numbers = batch["number"][:, 0].tolist()
            trained.extend(numbers)
            loss, valid, extra = training_step(self, model, batch)
            if set(numbers) & set(rows):
                if kind == "loss":
                    loss = loss * math.nan
                elif kind == "gradient":
                    loss.register_hook(lambda gradient: gradient * math.inf)
            return loss, valid, extra

        monkeypatch.setattr(PretrainObjective, "row", row)
        monkeypatch.setattr(PretrainObjective, "training_step", step)
        return trained

    return spoil


class Weights(Callback):
    """Keeps a copy of the weights after every step."""

    def __init__(self):
        self.after = {}

    def on_train_batch_end(self, trainer, step):
        self.after[step] = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        assert all(torch.isfinite(tensor).all() for tensor in self.after[step].values())


def journal(folder):
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]


def train_lines(kit, folder):
    return {line["step"]: line for line in kit.metrics(folder) if "train/loss" in line}


@pytest.mark.parametrize("kind", ["loss", "gradient", "targets"])
def test_one_bad_step_changes_no_weight(tmp_path, kit, poison, kind):
    bad = [8, 9, 10, 11] if kind == "targets" else [10]
    poison(bad, kind)
    weights = Weights()
    kit.train(kit.config(), tmp_path, callbacks=[weights])
    same = {s: all(torch.equal(weights.after[s][n], weights.after[s - 1][n]) for n in weights.after[s]) for s in (2, 3)}
    assert same == {2: False, 3: True}
    (entry,) = journal(tmp_path)
    assert (entry["step"], entry["rows"]) == (3, [8, 9, 10, 11])
    assert {"loss": "nan", "gradient": "gradient norm nan", "targets": "no valid target"}[kind] in entry["reason"]
    lines = train_lines(kit, tmp_path)
    assert [lines[step]["train/skipped"] for step in (2, 3, 4)] == [0, 1, 1]
    where = "train/grad_norm" if kind == "gradient" else "train/loss"
    assert lines[3][where] in ("nan", "inf") and all(isinstance(lines[s][where], float) for s in (1, 2, 4, 5, 6))


def test_a_bad_step_is_logged_though_its_turn_has_not_come_and_is_not_averaged(tmp_path, kit, poison):
    poison([10])
    kit.train(kit.config(loggers__every_steps=6, callbacks={}), tmp_path)
    lines = train_lines(kit, tmp_path)
    assert list(lines) == [1, 3, 6] and lines[3]["train/loss"] == "nan"
    assert math.isfinite(lines[6]["train/loss"])


def test_too_many_in_a_row_go_back_and_on_without_their_rows(tmp_path, kit, poison):
    """Steps 4 and 5 are bad; the checkpoint before them is that of step 2 (at step 3 none is due)."""
    trained = poison([13, 18])
    console = kit.Console()
    settings = kit.config(training__max_bad_steps=2, training__max_steps=8, checkpoint__best=False)
    kit.train(settings, tmp_path, console=console)
    assert any("back to step 2, and on without 8 rows" in line for line in console.lines)
    # Steps 1 to 5, then 3 again, then 4 to 8 on what follows the rows left out.
    assert trained == [*range(20), *range(8, 12), *range(20, 40)]
    (entry,) = journal(tmp_path)
    assert entry["restored_to"] == 2 and entry["rows"] == list(range(12, 20)) and entry["skipped_steps"] == 2
    lines = [line for line in kit.metrics(tmp_path) if "train/loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert all(isinstance(line["train/loss"], float) for line in lines)
    assert [line["train/skipped"] for line in lines] == [0, 0, 0, 2, 2, 2, 2, 2]
    assert [line.get("train/restorations", 0) for line in lines] == [0, 0, 0, 1, 1, 1, 1, 1]


def test_the_same_as_if_the_rows_had_never_been_there(tmp_path, kit, poison, monkeypatch):
    """An independent run whose rows are numbered without the bad ones from the start ends with the same weights."""
    poison(range(12, 20))
    settings = kit.config(training__max_bad_steps=2, training__max_steps=8)
    kit.train(settings, tmp_path / "restored")
    rows = [row for row in range(100) if row not in range(12, 20)]
    monkeypatch.setattr(RowJournal, "rows", lambda self, first, count: rows[first : first + count])
    kit.train(settings, tmp_path / "without")
    assert kit.outcome(tmp_path / "restored")["files"] == kit.outcome(tmp_path / "without")["files"]


def test_back_to_the_first_weights_before_any_checkpoint(tmp_path, kit, poison):
    trained = poison([0, 5])
    settings = kit.config(training__max_bad_steps=2, callbacks__early_stopping={"patience": 9})
    kit.train(settings, tmp_path / "run")
    assert trained == [*range(8), *range(8, 32)]
    assert journal(tmp_path / "run")[0]["restored_to"] == 0
    assert [line["step"] for line in kit.metrics(tmp_path / "run") if "train/loss" in line] == [1, 2, 3, 4, 5, 6]


def test_after_enough_restorations_it_stops_with_a_report(tmp_path, kit, poison):
    poison(range(8, 1000))
    settings = kit.config(training__max_bad_steps=2, training__max_restores=2)
    with pytest.raises(WorkError, match=r"2 bad steps in a row from step 3 .*after 2 restorations.*skipped\.jsonl"):
        kit.train(settings, tmp_path)
    entries = journal(tmp_path)
    assert [entry.get("restored_to") for entry in entries] == [2, 2, None, None]
    assert [entry["rows"] for entry in entries[:2]] == [list(range(8, 16)), list(range(16, 24))]
    assert not (tmp_path / "model").exists()
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-00000002"]
    with pytest.raises(WorkError, match="after 2 restorations"):  # starting it again cannot loop either
        kit.train(settings, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))])
def test_killed_amid_bad_steps(tmp_path, kit, chaos, killed, poison, part):
    """Two restorations (one to the start), and between them a bad step that is only skipped; killed on the way."""
    poison([1, 6, 22, 41, 45])
    settings = kit.config(training__max_bad_steps=2, training__max_steps=12)
    expected, moments = kit.measure(chaos, settings, tmp_path)
    assert [e.get("restored_to") for e in journal(tmp_path / "whole")] == [0, 8, None]
    count = len(moments)
    critical = [i for i, moment in enumerate(moments) if moment in ("before load", "before _write")]
    for at in sorted({*critical[part::4], *range(part * count // 12, count, count // 3)}):
        chaos.reset(at)
        with pytest.raises(killed):
            kit.train(settings, tmp_path / f"{at}")
        chaos.reset()
        kit.train(settings, tmp_path / f"{at}")
        assert kit.outcome(tmp_path / f"{at}") == expected, f"killed at {at}"


@pytest.mark.slow
def test_stopped_amid_bad_steps(tmp_path, kit, poison):
    """A stop saves a checkpoint within the series: going back must still find the one before it, and end the same."""
    poison([12, 16, 20])
    settings = kit.config(training__max_bad_steps=3, training__max_steps=8, checkpoint__best=False)
    kit.train(settings, tmp_path / "whole")
    expected = kit.outcome(tmp_path / "whole")
    assert [entry["restored_to"] for entry in journal(tmp_path / "whole")] == [2]

    class Stop(Callback):
        def __init__(self, step, when):
            self.step, self.when = step, when

        def on_train_batch_start(self, trainer, step):
            if step == self.step and self.when == "before":
                trainer.signals.request()

        def on_train_batch_end(self, trainer, step):
            if step == self.step and self.when == "after":
                trainer.signals.request()
                trainer.signals.check()

    for stops in (
        [(3, "after")],
        [(4, "after"), (5, "after"), (6, "after")],
        [(5, "before"), (6, "before")],
        [(6, "after")],
    ):
        folder = tmp_path / str(stops)
        for stop in stops:
            assert kit.train(settings, folder, callbacks=[Stop(*stop)]).exit_status == 143
        kit.train(settings, folder)
        state = kit.outcome(folder)
        state["state"]["trainer"]["callbacks"].pop("Stop", None)
        if stops == [(3, "after")]:  # there is a newer one to go back to: nothing else may tell
            state["journal"] = state["journal"].replace('"restored_to": 3', '"restored_to": 2')
        assert state == expected, stops


def test_nothing_is_saved_over_good_weights(tmp_path, kit):
    """Should weights ever stop being finite, saving refuses: the last good checkpoint stays the last."""

    class Break(Callback):
        def on_train_batch_end(self, trainer, step):
            if step == 3:
                with torch.no_grad():
                    next(iter(trainer.model.parameters())).fill_(math.nan)

    settings = kit.config(training__max_bad_steps=9, evaluation__every_steps=6, callbacks={}, checkpoint__every_steps=1)
    with pytest.raises(WorkError, match="weights at step 3 are not finite"):
        kit.train(settings, tmp_path, callbacks=[Break()])
    last = load_checkpoint(list_checkpoints(tmp_path)[-1])
    assert last.step == 2 and all(torch.isfinite(t).all() for t in last.model_state.values())


def test_callbacks_start_again_when_the_run_goes_back_to_its_start(tmp_path, kit, poison, chaos, killed):
    """Early stopping has counted an evaluation that is undone: a run killed just then must not count otherwise."""
    poison([4, 8])
    settings = kit.config(
        training__max_bad_steps=2, evaluation__every_steps=1, checkpoint={"every_steps": 4, "best": False},
        callbacks={"early_stopping": {"patience": 3, "min_delta": 9.0}}, training__max_steps=9,
    )  # fmt: skip
    expected, moments = kit.measure(chaos, settings, tmp_path)
    assert expected["last"] == "step-00000004"
    at = moments.index("before _hook on_train_start", moments.index("before _hook on_train_start") + 1)
    chaos.reset(at)
    with pytest.raises(killed):
        kit.train(settings, tmp_path / "killed")
    chaos.reset()
    kit.train(settings, tmp_path / "killed")
    assert kit.outcome(tmp_path / "killed") == expected


def test_rows_of_any_step_follow_from_the_journal(tmp_path):
    """Against the plain definition: number the rows that are not excluded, and cut them into steps."""
    (tmp_path / "skipped.jsonl").write_text(
        '{"restored_to": 2, "first_bad_step": 3, "rows": [3, 4, 5, 9], "skipped_steps": 1, "reason": "x"}\n'
        '{"restored_to": 0, "first_bad_step": 1, "rows": [0, 6, 40], "skipped_steps": 1, "reason": "y"}\n'
    )
    kept = [row for row in range(200) if row not in {3, 4, 5, 9, 0, 6, 40}]
    book = RowJournal(tmp_path / "skipped.jsonl")
    for size in (1, 3, 8):
        for step in range(1, 20):
            assert book.rows((step - 1) * size, size) == kept[(step - 1) * size : step * size]


@pytest.mark.parametrize("line", ['{"step": 3, "rows"', "7", '{"step": 3}', '{"restored_to": 1, "rows": []}'])
def test_a_damaged_journal_is_named(tmp_path, kit, line):
    kit.train(kit.config(training__max_steps=2), tmp_path)
    (tmp_path / "skipped.jsonl").write_text(line)
    shutil.rmtree(tmp_path / "model")  # so that the run is not over
    with pytest.raises(WorkError, match=r"skipped\.jsonl is damaged in line 1"):
        kit.train(kit.config(training__max_steps=2), tmp_path)
    assert (tmp_path / "skipped.jsonl").read_text() == line
