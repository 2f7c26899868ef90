"""fp16's loss scale, by injected overflows: the arithmetic is fp32, since a CPU cannot do fp16 in useful time."""

import json
import math
from contextlib import nullcontext

import pytest
import torch

from minigpt.config import WorkError
from minigpt.training import trainer
from minigpt.training.precision import LossScaler


@pytest.fixture
def fp16(monkeypatch, kit):
    """The settings of a run that scales its loss but computes in fp32, as a CPU cannot do fp16 in useful time."""
    monkeypatch.setattr(trainer, "autocast", lambda precision, device: nullcontext())
    return lambda **changes: kit.config(**({"training__precision": "fp16", "training__max_steps": 8} | changes))


def overflow(monkeypatch, steps):
    """Make the scaled gradients of these steps overflow (once each), as those of fp16 do."""
    real = trainer.Trainer._gradient_norm
    left = list(steps)

    def norm(self):
        if self.step + 1 in left:
            left.remove(self.step + 1)
            return torch.tensor(math.inf)
        return real(self)

    monkeypatch.setattr(trainer.Trainer, "_gradient_norm", norm)


def scales(kit, folder):
    return {line["step"]: line["train/loss_scale"] for line in kit.metrics(folder) if "train/loss_scale" in line}


def test_the_loss_scale_does_not_change_the_result(tmp_path, kit, fp16):
    """Multiplying by a power of two and dividing again is exact, so the weights are those of an fp32 run."""
    kit.train(fp16(training__grad_clip=None), tmp_path / "scaled")
    kit.train(kit.config(training__max_steps=8, training__grad_clip=None), tmp_path / "plain")
    assert kit.outcome(tmp_path / "scaled")["files"] == kit.outcome(tmp_path / "plain")["files"]


def test_an_overflow_halves_the_scale_and_is_no_bad_step(tmp_path, kit, fp16, monkeypatch):
    overflow(monkeypatch, [2, 3, 4, 5])
    kit.train(fp16(training__max_bad_steps=2), tmp_path)
    first = LossScaler.INITIAL
    assert [first / scale for scale in scales(kit, tmp_path).values()] == [1, 2, 4, 8, 16, 16, 16, 16]
    entries = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [2, 3, 4, 5] and all("overflow" in e["reason"] for e in entries)
    assert [line["train/skipped"] for line in kit.metrics(tmp_path) if "train/loss" in line] == [0, 1, 2, 3, 4, 4, 4, 4]


def test_the_scale_grows_after_a_quiet_while(tmp_path, kit, fp16, monkeypatch):
    monkeypatch.setattr(LossScaler, "GROWTH_INTERVAL", 3)
    overflow(monkeypatch, [5])
    kit.train(fp16(), tmp_path)
    first = LossScaler.INITIAL
    assert [scale / first for scale in scales(kit, tmp_path).values()] == [1, 1, 2, 2, 1, 1, 1, 2]


def test_at_the_smallest_scale_an_overflow_is_the_models_fault(tmp_path, kit, fp16, monkeypatch):
    monkeypatch.setattr(LossScaler, "INITIAL", 4.0)
    overflow(monkeypatch, [3, 4, 5, 6] + [3, 4, 5, 6] * 9)
    with pytest.raises(WorkError, match="2 bad steps in a row from step 5"):
        kit.train(fp16(training__max_bad_steps=2, training__max_restores=0), tmp_path)


@pytest.mark.slow
def test_the_scale_is_part_of_the_state(tmp_path, kit, fp16, monkeypatch, chaos, killed):
    """Killed and resumed, going back to the start included."""
    monkeypatch.setattr(LossScaler, "GROWTH_INTERVAL", 3)
    real, nans = trainer.Trainer._gradient_norm, {8, 9, 10, 11}

    def norm(self):
        return real(self) if nans.isdisjoint(self.journal.rows(4 * self.step, 4)) else torch.tensor(math.nan)

    monkeypatch.setattr(trainer.Trainer, "_gradient_norm", norm)
    monkeypatch.setattr(LossScaler, "can_shrink", False)
    settings = fp16(checkpoint__every_steps=5, checkpoint__best=False, training__max_bad_steps=1)
    expected, moments = kit.measure(chaos, settings, tmp_path)
    assert '"restored_to": 0' in expected["journal"]
    assert expected["state"]["trainer"]["scaler"] != {"scale": LossScaler.INITIAL, "good_steps": 0}
    for at in range(len(moments) // 5, len(moments), len(moments) // 5):
        chaos.reset(at)
        with pytest.raises(killed):
            kit.train(settings, tmp_path / str(at))
        chaos.reset()
        kit.train(settings, tmp_path / str(at))
        assert kit.outcome(tmp_path / str(at)) == expected
