"""TensorBoard's own reader finds every key, value, text and histogram, once, however often the run was stopped."""

import json
import math
import signal

import pytest

from minigpt.config import config_yaml
from minigpt.training import Callback

pytest.importorskip("tensorboard")

AXIS = "step"


class Ends(Callback):
    """Ends a session at a step, as an error does, which leaves what was logged since the last checkpoint."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, step):
        if step == self.step:
            raise RuntimeError("the machine is gone")


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "tensors": 0, "histograms": 0})
    return found.Reload()


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scalars(folder):
    """{key: [(step, value), ...]} of the run's own log, as 32-bit floats, which are what TensorBoard keeps."""
    import numpy as np

    found = {}
    for line in lines(folder):
        for key, value in line.items():
            if key != AXIS:
                found.setdefault(key, []).append((line[AXIS], float(np.float32(float(value)))))
    return found


def compare(folder):
    found = read(folder)
    wanted = scalars(folder)
    assert set(found.Tags()["scalars"]) == set(wanted)
    for key, points in wanted.items():
        assert [(event.step, event.value) for event in found.Scalars(key)] == points, key
    return found


def texts(found, tag):
    return [(e.step, e.tensor_proto.string_val[0].decode()) for e in found.Tensors(f"{tag}/text_summary")]


def test_everything_is_there(tmp_path, kit):
    settings = kit.config(loggers={"every_steps": 1, "console": "quiet", "tensorboard": True,
                                   "histograms_every_steps": 3})  # fmt: skip
    kit.train(kit.config(), tmp_path / "off")
    kit.train(settings, tmp_path / "run")
    assert kit.outcome(tmp_path / "run") == kit.outcome(tmp_path / "off")
    found = compare(tmp_path / "run")
    assert len(found.Tags()["scalars"]) == len(scalars(tmp_path / "run")) > 20
    histograms = found.Tags()["histograms"]
    assert {name.split("/")[1] for name in histograms} == {"gradient", "parameter"}
    assert "monitor/parameter/blocks.0.attention.qkv" in histograms
    for name in histograms:
        events = found.Histograms(name)
        assert [event.step for event in events] == [3, 6]
        for one in events:
            value = one.histogram_value
            assert sum(value.bucket) == value.num > 0 and value.min <= value.max
            assert value.bucket_limit[-1] == value.max and len(value.bucket) == len(value.bucket_limit)
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    shown = [(step, "\n".join(line[4:] for line in text.split("\n"))) for step, text in texts(found, "sample")]
    assert shown == [(sample["step"], sample["text"]) for sample in samples]
    [(step, text)] = texts(found, "config")
    assert step == 0 and "    model:\n" in text and "      n_embd: 32\n" in text


@pytest.mark.parametrize("step", [2, 5])
def test_a_resume_purges_what_is_done_again(tmp_path, kit, step):
    """Ended at step 2, before the first checkpoint: from the beginning. At step 5: from step 4."""
    settings = kit.config(loggers__tensorboard=True)
    with pytest.raises(RuntimeError):
        kit.train(settings, tmp_path / "run", callbacks=[Ends(step)])
    assert [event.step for event in read(tmp_path / "run").Scalars("train/loss")] == list(range(1, step + 1))
    kit.train(settings, tmp_path / "run")
    found = compare(tmp_path / "run")
    assert [event.step for event in found.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in texts(found, "sample")] == [3, 6]


def test_numbers_that_are_not_finite(tmp_path):
    from minigpt.training.loggers import RunInfo
    from minigpt.training.loggers.tensorboard import TensorBoardLogger

    logger = TensorBoardLogger()
    logger.start(RunInfo(tmp_path, {}, "x", 0, 1))
    logger.log({"step": 1, "train/loss": math.nan, "train/grad_norm": math.inf})
    logger.close()
    logger.close()
    found = read(tmp_path)
    assert math.isnan(found.Scalars("train/loss")[0].value) and found.Scalars("train/grad_norm")[0].value == math.inf


@pytest.mark.slow
def test_a_killed_process_leaves_what_it_had_logged(tmp_path, kit, minigpt):
    """SIGKILL in the middle of a run; then the same command goes on. What is read back is the run's own log."""
    settings = tmp_path / "run.yaml"
    settings.write_text(config_yaml(kit.config(training__max_steps=400, loggers__tensorboard=True)))
    process = minigpt("train", settings, "--run-dir", tmp_path / "run")
    process.wait_for(lambda: (tmp_path / "run" / "checkpoints" / "step-00000004").exists())
    process.kill(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = read(tmp_path / "run").Scalars("train/loss")
    assert before and [event.step for event in before] == list(range(1, len(before) + 1))
    process = minigpt("train", settings, "--run-dir", tmp_path / "run")
    process.wait_for(lambda: (tmp_path / "run" / "checkpoints" / "step-00000012").exists())
    process.kill(signal.SIGTERM)
    assert process.wait() == 143, process.output
    found = [event.step for event in read(tmp_path / "run").Scalars("train/loss")]
    assert found == sorted(set(found)) and set(found) <= {line["step"] for line in lines(tmp_path / "run")}
