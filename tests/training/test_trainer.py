"""The loop: the mean over valid targets, clipping, hooks, callbacks, what may not change a run."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from minigpt.config import RequestError, WorkError
from minigpt.objectives import IGNORED, PretrainObjective
from minigpt.storage import best_checkpoint, list_checkpoints, load_checkpoint
from minigpt.training import Callback, trainer

PLAIN = {"callbacks": {}, "checkpoint": {"every_steps": None, "best": False}, "model__dropout": 0.0}


class Mask:
    """Hides some targets: another share in each row, all of them in some rows."""

    def __init__(self, monkeypatch):
        self.rows = {}
        make = PretrainObjective.row

        def row(objective, index):
            made = make(objective, index)
            made["targets"] = made["targets"].copy()
            made["targets"][: (index * 7) % 17] = IGNORED
            self.rows[index] = made
            return made

        monkeypatch.setattr(PretrainObjective, "row", row)
        monkeypatch.setattr(
            PretrainObjective, "training_step",
            lambda objective, model, batch: (model(batch["ids"], targets=batch["targets"]), -1, {}),
        )  # fmt: skip


@pytest.mark.parametrize("masked", [False, True])
def test_the_mean_does_not_depend_on_the_micro_batch(tmp_path, kit, monkeypatch, masked):
    """fp32 sums in another order differ by rounding only: 1e-6 of the loss, and 1e-4 after Adam's division."""
    if masked:
        Mask(monkeypatch)
    found = {}
    for micro in (1, 2, 4, 8):
        changes = {"training": {"max_steps": 4, "batch_tokens": 128, "micro_batch": micro}, **PLAIN}
        kit.train(kit.config(**changes), tmp_path / str(micro))
        found[micro] = kit.metrics(tmp_path / str(micro))
    for micro in (2, 4, 8):
        for one, other in zip(found[1], found[micro], strict=True):
            assert one["tokens"] == other["tokens"]
            assert other.get("train/loss", 0) == pytest.approx(one.get("train/loss", 0), rel=1e-5)
            assert other.get("train/grad_norm", 0) == pytest.approx(one.get("train/grad_norm", 0), rel=1e-4)


def test_the_loss_is_the_mean_over_all_valid_targets(tmp_path, kit, monkeypatch):
    """Against PyTorch's own cross-entropy over the stacked rows of the first step, and its gradient's norm."""
    mask = Mask(monkeypatch)
    seen = {}

    class Look(Callback):
        def on_train_batch_start(self, trainer, step):
            if step == 1:
                seen["before"] = {n: t.clone() for n, t in trainer.model.state_dict().items()}
                seen["model"] = trainer.model

    kit.train(kit.config(training__micro_batch=1, **PLAIN), tmp_path, callbacks=[Look()])
    model = seen["model"]
    model.load_state_dict(seen["before"])
    model.zero_grad()
    ids = torch.from_numpy(np.stack([mask.rows[i]["ids"] for i in range(4)]))
    targets = torch.from_numpy(np.stack([mask.rows[i]["targets"] for i in range(4)]))
    loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    first = kit.metrics(tmp_path)[0]
    assert first["tokens"] == int((targets != IGNORED).sum()) < targets.numel()
    assert first["train/loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert first["train/grad_norm"] == pytest.approx(float(norm), rel=1e-5)


def test_clipping_is_that_of_pytorch(tmp_path, kit):
    """The gradients that the update is made with, against clip_grad_norm_ of the unclipped ones of an equal run."""
    kept = {}

    class Keep(Callback):
        def __init__(self, name):
            self.name = name

        def on_before_optimizer_step(self, trainer):
            parameters = list(trainer.model.parameters())
            kept.setdefault(self.name, ([p.grad * trainer.gradient_factor for p in parameters], parameters))

    for name, clip in (("plain", None), ("clipped", 0.05)):
        kit.train(kit.config(training__grad_clip=clip, **PLAIN), tmp_path / name, callbacks=[Keep(name)])
    gradients, parameters = kept["plain"]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    assert float(nn.utils.clip_grad_norm_(parameters, 0.05)) > 0.05
    for parameter, clipped in zip(parameters, kept["clipped"][0], strict=True):
        torch.testing.assert_close(clipped, parameter.grad, rtol=1e-5, atol=1e-9)


# ---- what surrounds the loop ---------------------------------------------------------------------------------------


def test_nothing_that_looks_at_a_run_changes_it(tmp_path, kit):
    looks = {
        "nothing": {"callbacks": {}, "evaluation__every_steps": None, "checkpoint__best": False},
        "samples": {"callbacks": {"sample": {"every_steps": 1, "max_new_tokens": 40, "temperature": 1.5}}},
        "monitor": {"callbacks": {"monitor": {"every_steps": 1}}, "evaluation": {"every_steps": 1}},
        "saving": {"checkpoint": {"every_steps": 1, "keep_last": 4, "background": False}, "loggers__every_steps": 3},
        "patience": {"callbacks": {"early_stopping": {"patience": 1000}}, "evaluation__max_tokens": 16},
    }  # fmt: skip
    found = set()
    for name, changes in looks.items():
        kit.train(kit.config(**changes), tmp_path / name)
        found.add(str(kit.outcome(tmp_path / name)["files"]))
    assert len(found) == 1


def test_hooks_come_in_lightnings_order(tmp_path, kit):
    calls = []

    class Record(Callback):
        pass

    for name in [name for name in vars(Callback) if name.startswith("on_")]:
        setattr(Record, name, lambda self, trainer, *rest, name=name: calls.append((name, trainer.step)))
    settings = kit.config(training__max_steps=2, evaluation__every_steps=1, checkpoint__every_steps=1)
    kit.train(settings, tmp_path, callbacks=[Record()])
    step = ["on_train_batch_start", "on_before_optimizer_step", "on_validation_start", "on_validation_end",
            "on_train_batch_end", "on_save_checkpoint"]  # fmt: skip
    assert [name for name, _ in calls] == ["on_train_start", *step, *step, "on_train_end"]
    assert [at for _, at in calls] == [0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]
    calls.clear()
    kit.train(kit.config(training__max_steps=9, optimizer__lr=1e-3), tmp_path / "new", resume=str(tmp_path),
              callbacks=[Record()])  # fmt: skip
    assert calls[:2] == [("on_load_checkpoint", 2), ("on_train_start", 2)]


def test_an_error_in_a_callback_ends_the_run_with_its_own_message(tmp_path, kit):
    seen = []

    class Fail(Callback):
        def on_train_batch_end(self, trainer, step):
            if step == 3:
                raise ZeroDivisionError("my mistake")

        def on_exception(self, trainer, error):
            seen.append(error)

    with pytest.raises(ZeroDivisionError, match="my mistake"):
        kit.train(kit.config(), tmp_path / "run", callbacks=[Fail()])
    assert len(seen) == 1
    kit.train(kit.config(), tmp_path / "run")
    kit.train(kit.config(), tmp_path / "whole")
    assert kit.outcome(tmp_path / "run")["files"] == kit.outcome(tmp_path / "whole")["files"]


def test_an_error_in_the_prefetch_thread_ends_the_run(tmp_path, kit, monkeypatch):
    make = PretrainObjective.row

    def row(self, index):
        if index == 13:
            raise OSError("the disk has gone")
        return make(self, index)

    monkeypatch.setattr(PretrainObjective, "row", row)
    with pytest.raises(OSError, match="the disk has gone"):
        kit.train(kit.config(), tmp_path)
    assert list_checkpoints(tmp_path)


def test_a_state_of_ones_own_comes_back(tmp_path, kit):
    class Count(Callback):
        def __init__(self):
            self.steps = 0

        def on_train_batch_end(self, trainer, step):
            self.steps += 1
            if step == 4:
                trainer.signals.request()

        def state_dict(self):
            return {"steps": self.steps}

        def load_state_dict(self, state):
            self.steps = state["steps"]

    assert kit.train(kit.config(), tmp_path, callbacks=[Count()]).exit_status == 143
    second = Count()
    kit.train(kit.config(), tmp_path, callbacks=[second])
    assert second.steps == 6


def test_a_prompt_that_the_tokenizer_lacks_is_refused_at_once(tmp_path, kit):
    settings = kit.config(callbacks={"sample": {"every_steps": 5, "prompt": "\u00e9"}})
    with pytest.raises(RequestError, match=r"callbacks\.sample\.prompt='\u00e9' cannot be encoded: .*U\+00E9"):
        kit.train(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("tokenizer", [{"kind": "char"}, {"kind": "bpe", "vocab_size": 270}])
def test_a_sample_without_a_prompt(tmp_path, kit, tokenizer):
    kit.train(kit.config(tokenizer=tokenizer, callbacks={"sample": {"every_steps": 3}}), tmp_path)
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 2


def test_early_stopping(tmp_path, kit):
    """No loss is lower by 9 than the first: with a patience of 2 the third evaluation ends the run."""
    stop = {"early_stopping": {"patience": 2, "min_delta": 9.0}}
    result = kit.train(kit.config(evaluation__every_steps=1, callbacks=stop), tmp_path)
    assert "has not fallen for 2 evaluations" in result.message
    assert load_checkpoint(list_checkpoints(tmp_path)[-1]).step == 3 and (tmp_path / "model").exists()
    assert "is finished" in kit.train(kit.config(evaluation__every_steps=1, callbacks=stop), tmp_path).message


def test_overfitting_sees_only_its_rows_and_learns_them(tmp_path, kit, monkeypatch):
    seen = set()
    make = PretrainObjective.row
    monkeypatch.setattr(PretrainObjective, "row", lambda self, index: (seen.add(index), make(self, index))[1])
    settings = kit.config(
        training={"max_steps": 300, "batch_tokens": 32, "micro_batch": 2, "overfit_batches": 1},
        evaluation={"every_steps": None}, checkpoint={"every_steps": None}, callbacks={}, model__dropout=0.0,
    )  # fmt: skip
    kit.train(settings, tmp_path)
    assert seen == {0, 1}
    line = kit.metrics(tmp_path)[-1]
    assert line["val/loss"] < 0.05  # random text of ten characters: 2.3 if not learnt by heart
    assert kit.metrics(tmp_path)[0]["train/loss"] > 2


def test_checkpoints_every_so_many_minutes(tmp_path, kit, monkeypatch):
    """Each step takes half a minute of a clock of our own: a checkpoint every two minutes is one every four steps."""
    clock = {"now": 1000.0}
    monkeypatch.setattr(trainer.time, "monotonic", lambda: clock["now"])

    class Tick(Callback):
        def on_train_batch_start(self, trainer, step):
            clock["now"] += 30

    saved = []
    save = trainer.Trainer.save_checkpoint
    monkeypatch.setattr(trainer.Trainer, "save_checkpoint", lambda self: (saved.append(self.step), save(self)))
    checkpoint = {"every_steps": None, "every_minutes": 2.0, "best": False}
    kit.train(kit.config(training__max_steps=10, checkpoint=checkpoint), tmp_path, callbacks=[Tick()])
    assert saved == [4, 8, 10]


def test_the_newest_and_the_best_are_kept(tmp_path, kit, monkeypatch):
    """The validation loss is lowest at step 3 (made so): its checkpoint outlives eight later ones."""
    real = PretrainObjective.validation_step

    def step(self, model, batch):
        loss, valid, extra = real(self, model, batch)
        return loss + 100 * abs(len(evaluated) - 3), valid, extra

    evaluated = []

    class Count(Callback):
        def on_validation_start(self, trainer):
            evaluated.append(trainer.step)

    monkeypatch.setattr(PretrainObjective, "validation_step", step)
    settings = kit.config(
        training__max_steps=12, evaluation__every_steps=1, checkpoint={"every_steps": 2, "keep_last": 3}
    )
    kit.train(settings, tmp_path, callbacks=[Count()])
    assert [folder.name[-2:] for folder in list_checkpoints(tmp_path)] == ["03", "08", "10", "12"]
    assert best_checkpoint(tmp_path).name == "step-00000003"
    assert (tmp_path / "checkpoints" / "best").read_text() == "step-00000003\n"


def test_a_failed_background_save_ends_the_run_with_its_message(tmp_path, kit, monkeypatch):
    from minigpt.storage import fs

    real = fs.write_file

    def write(path, data):
        if "step-00000004" in str(path) and path.name == "trainer_state.json":
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(fs, "write_file", write)
    with pytest.raises(WorkError, match="no space left on device; the previous checkpoint step-00000003 is kept"):
        kit.train(kit.config(training__max_steps=60), tmp_path)
    assert load_checkpoint(list_checkpoints(tmp_path)[-1]).step == 3
    monkeypatch.setattr(fs, "write_file", real)
    assert kit.train(kit.config(training__max_steps=60), tmp_path).exit_status == 0


def test_a_validation_set_without_a_valid_target_is_named(tmp_path, kit, monkeypatch):
    monkeypatch.setattr(PretrainObjective, "validation_step", lambda self, model, batch: (torch.tensor(0.0), 0, {}))
    with pytest.raises(WorkError, match="validation set has no valid target"):
        kit.train(kit.config(), tmp_path)


def test_metrics_have_the_names_and_the_units_that_are_documented(tmp_path, kit, monkeypatch):
    monkeypatch.setattr(trainer, "peak_flops", lambda *a: 1e12)
    kit.train(kit.config(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first = lines[0]
    always = {"step", "tokens", "time", "train/loss", "train/lr", "train/grad_norm", "train/skipped"}
    sometimes = {"perf/tokens_per_second", "perf/mfu", "perf/step_ms", "perf/data_wait_ms", "memory/peak_mb"}
    assert always | sometimes <= set(first)
    assert [line["tokens"] for line in lines if "train/loss" in line] == [64 * step for step in range(1, 7)]
    evaluations = [line for line in lines if "val/loss" in line]
    assert [line["step"] for line in evaluations] == [3, 6]
    for line in evaluations:  # ASCII characters: one byte a token
        assert line["val/bpb"] == pytest.approx(line["val/loss"] / math.log(2), rel=1e-12)
    assert 10 < first["memory/peak_mb"] < 1e5 and first["perf/tokens_per_second"] > 1
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [3, 6] and all(s["text"].startswith("a") for s in samples)
