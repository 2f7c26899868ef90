"""`metrics.csv` is `metrics.jsonl` as a table, to the last digit, whatever happens to a run."""

import csv
import json

import pytest

from minigpt.objectives import PretrainObjective
from minigpt.training import Callback
from minigpt.training.loggers import JsonlLogger, Logger, RunInfo
from minigpt.training.loggers.table import CsvLogger


class Starts(Logger):
    """Keeps what it is told at each start."""

    def __init__(self):
        self.runs = []

    def start(self, run):
        self.runs.append(run)


class StopsAt(Callback):
    """Ends a session in the middle of a step, as an error or as a signal does."""

    def __init__(self, step, error):
        self.step, self.error = step, error

    def on_train_batch_end(self, trainer, step):
        if step == self.step:
            if self.error:
                raise RuntimeError("the machine is gone")
            trainer.signals.request()


def info(folder, step=0):
    return RunInfo(folder, {"a": 1}, "name", step, 10)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def table(folder):
    """The table as a reader of CSV sees it, with numbers where the log has numbers."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: cell for key, cell in row.items() if cell != ""} for row in rows]


def same(rows, logged):
    def cell(value):
        return value if isinstance(value, str) else repr(value)

    return rows == [{key: cell(value) for key, value in line.items()} for line in logged]


def test_the_table_is_the_log(tmp_path, kit):
    kit.train(kit.config(loggers__csv=True), tmp_path / "run")
    logged = lines(tmp_path / "run")
    assert same(table(tmp_path / "run"), logged)
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert header[:4] == ["step", "tokens", "time", "train/loss"] and {"val/loss", "val/bpb"} < set(header)
    assert set(header) == {key for line in logged for key in line} and len(header) == len(set(header))


def test_the_table_while_a_run_goes_on(tmp_path):
    """After each line, with keys that come and go, and with what JSON and CSV write in their own ways."""
    log, follower = JsonlLogger(tmp_path / "metrics.jsonl"), CsvLogger()
    follower.start(info(tmp_path))
    assert (tmp_path / "metrics.csv").read_text() == ""
    odd = [{"step": 1, "train/loss": 0.1}, {"step": 1, "val/loss": float("nan")}, {"step": 2, "train/loss": 1e-300},
           {"step": 3, "data/a,b \"c\"/tokens": 7, "x": float("inf")}, {"step": 4, "x": 1 / 3}]  # fmt: skip
    for line in odd:
        log.log(line)
        follower.log(line)
        assert same(table(tmp_path), lines(tmp_path))
    assert float(table(tmp_path)[-1]["x"]) == 1 / 3


def test_the_table_follows_a_log_that_was_cut_and_leaves_out_half_lines(tmp_path):
    log, follower = JsonlLogger(tmp_path / "metrics.jsonl"), CsvLogger()
    follower.start(info(tmp_path))
    for step in range(5):
        log.log({"step": step, "x": 1.5})
    length = log.position
    log.log({"step": 5, "y": 2})
    follower.log({})
    log.truncate(length)
    follower.start(info(tmp_path, 4))
    assert same(table(tmp_path), lines(tmp_path)) and "y" not in (tmp_path / "metrics.csv").read_text()
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 5, "x"')
        file.flush()
        follower.log({})
        assert len(table(tmp_path)) == 5
        file.write(b": 2.5}\n")
        file.flush()
        follower.log({})
    assert same(table(tmp_path), lines(tmp_path)) and len(table(tmp_path)) == 6
    follower.close()
    assert same(table(tmp_path), lines(tmp_path))


@pytest.mark.parametrize("error", [True, False])
def test_the_table_after_a_resume(tmp_path, kit, error):
    """Step 5 was logged, is forgotten (the last checkpoint is of step 4), and done again."""
    settings = kit.config(loggers__csv=True)
    kit.train(settings, tmp_path / "whole")
    try:
        kit.train(settings, tmp_path / "run", callbacks=[StopsAt(5, error)])
    except RuntimeError:
        assert error
    kit.train(settings, tmp_path / "run")
    assert kit.outcome(tmp_path / "run")["metrics"] == kit.outcome(tmp_path / "whole")["metrics"]
    assert same(table(tmp_path / "run"), lines(tmp_path / "run"))


def test_the_table_after_going_back(tmp_path, kit, monkeypatch):
    """Bad steps, a restoration to step 2, and other rows in their place."""

    real = PretrainObjective.training_step

    def poisoned(self, model, batch):
        loss, valid, extra = real(self, model, batch)
        steps.append(loss)
        return loss * (float("nan") if 5 <= len(steps) <= 8 else 1), valid, extra  # both micro-batches of steps 3 and 4

    steps = []
    monkeypatch.setattr(PretrainObjective, "training_step", poisoned)
    settings = kit.config(loggers__csv=True, training__max_bad_steps=2)
    recorder = Starts()
    kit.train(settings, tmp_path / "run", loggers=[recorder])
    assert [run.step for run in recorder.runs] == [0, 2] and len({run.id for run in recorder.runs}) == 1
    assert same(table(tmp_path / "run"), lines(tmp_path / "run"))


@pytest.mark.slow
def test_killed_anywhere_a_run_with_a_table_ends_the_same(tmp_path, kit, chaos, killed):
    """Sudden deaths at moments spread over the whole run, the table's own writing among them."""
    settings = kit.config(loggers__csv=True)
    expected, moments = kit.measure(chaos, settings, tmp_path)
    for at in range(3, len(moments), 43):
        folder = tmp_path / f"killed-{at}"
        chaos.reset(at)
        with pytest.raises(killed):
            kit.train(settings, folder)
        chaos.reset()
        kit.train(settings, folder)
        assert kit.outcome(folder) == expected and same(table(folder), lines(folder))
