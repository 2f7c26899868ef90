"""`minigpt.train`: the command as a function."""

import pytest

import minigpt

TREE = {
    "run": {"device": "cpu", "threads": 1, "seed": 3},
    "model": {"n_layer": 1, "n_head": 1, "n_embd": 32, "context_length": 8},
    "tokenizer": {"kind": "char"},
    "data": {"train": {"text": "to be or not to be, that is the question. " * 20}},
    "training": {"max_steps": 2, "batch_tokens": 16},
    "loggers": {"console": "quiet", "every_steps": 1},
}


class Steps(minigpt.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, step):
        self.seen.append(step)


class Losses(minigpt.Logger):
    def __init__(self):
        self.seen = []

    def log(self, metrics):
        if "train/loss" in metrics:
            self.seen.append(metrics["step"])


def test_a_run_with_overrides_and_objects(tmp_path):
    steps, losses = Steps(), Losses()
    result = minigpt.train(
        TREE, run_dir=tmp_path / "run", training__max_steps=3, loggers__csv=True, callbacks=[steps], loggers=[losses]
    )
    assert result.exit_status == 0 and result.run_dir == tmp_path / "run" and "trained 3 steps" in result.message
    assert steps.seen == losses.seen == [1, 2, 3]
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"model", "metrics.csv", "report.html", "environment.jsonl"} < names
    assert minigpt.load(tmp_path / "run").generate("to be", max_new_tokens=3)


def test_a_complete_config_takes_no_overrides(tmp_path):
    config, _ = minigpt.load_config(TREE)
    with pytest.raises(TypeError, match="a Config is complete"):
        minigpt.train(config, run_dir=tmp_path / "run", training__max_steps=3)
    assert minigpt.train(config, run_dir=tmp_path / "run").exit_status == 0
    with pytest.raises(minigpt.RequestError, match="choose another --run-dir"):
        minigpt.train(TREE, run_dir=tmp_path / "run", resume="never")
