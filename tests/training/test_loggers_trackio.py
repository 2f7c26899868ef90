"""Trackio's own database holds every key of every step, of one run however often it was stopped."""

import json
import signal
import sqlite3

from minigpt.training import Callback
from minigpt.training.loggers import Histogram, RunInfo
from minigpt.training.loggers.trackio import TrackioLogger


class Ends(Callback):
    """Stops the run after step 3, as Ctrl-C does."""

    def on_train_batch_end(self, trainer, step):
        if step == 3:
            trainer.signals.request(signal.SIGINT)


def database(folder, project):
    [file] = folder.rglob(f"{project}*.db")
    with sqlite3.connect(file) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("select * from metrics order by step, id")]


def test_everything_is_in_the_database(tmp_path, kit, trackio_folder):
    loggers = {"every_steps": 1, "console": "quiet", "histograms_every_steps": 3,
               "trackio": {"enabled": True, "project": "mine"}}  # fmt: skip
    settings = kit.config(loggers=loggers)
    assert kit.train(settings, tmp_path / "run", callbacks=[Ends()]).exit_status == 130
    assert kit.train(settings, tmp_path / "run").exit_status == 0
    rows = database(trackio_folder, "mine")
    identity = json.loads((tmp_path / "run" / "loggers.json").read_text())["id"]
    assert {row["run_name"] for row in rows} == {f"run-{identity}"} and len({row["run_id"] for row in rows}) == 1
    found = {}
    for row in rows:
        found.setdefault(row["step"], {}).update(json.loads(row["metrics"]))
    wanted = {}
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        values["seconds"] = values.pop("time")
        wanted.setdefault(values.pop("step"), {}).update(values)
    numbers = {step: {k: v for k, v in row.items() if not isinstance(v, dict)} for step, row in found.items()}
    assert numbers == wanted and list(wanted) == [1, 2, 3, 4, 5, 6]
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    for sample in samples:
        assert found[sample["step"]]["sample"]["_value"] == "    " + sample["text"].replace("\n", "\n    ")
    histograms = {name for name in found[3] if name.startswith(("monitor/gradient/", "monitor/parameter/"))}
    assert len(histograms) == 20 and all(sum(found[3][name]["values"]) > 0 for name in histograms)
    kit.train(kit.config(), tmp_path / "off")
    assert kit.outcome(tmp_path / "run") == kit.outcome(tmp_path / "off")


def test_what_trackio_is_told(tmp_path, trackio_folder):
    """Its own names are avoided: it would rename them, with a warning for every line."""
    from trackio import utils

    told = []

    class Run:
        def log(self, values, step):
            told.append((step, values))

    logger = TrackioLogger(None)
    logger._run = Run()
    logger.start(RunInfo(tmp_path, {}, "x", 3, 10))  # gone back: nothing to do
    logger.log({"step": 4, "time": 1.5, "tokens": 64, "train/loss": 2.0})
    logger.histograms(4, {"monitor/gradient/x": Histogram([1, 2], [0.0, 0.5, 1.0])})
    (step, metrics), (other, histograms) = told
    assert (step, metrics) == (4, {"seconds": 1.5, "tokens": 64, "train/loss": 2.0}) and other == 4
    assert not set(metrics) & set(utils.RESERVED_KEYS)
    one = histograms["monitor/gradient/x"]._to_dict()
    assert (one["values"], one["bins"]) == ([1, 2], [0.0, 0.5, 1.0])
