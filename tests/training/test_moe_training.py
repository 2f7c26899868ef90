"""Runs with a mixture of experts: what is logged, what the loss is, how balance comes about, stops and bad steps."""

import math
from contextlib import nullcontext

import pytest
import torch

from minigpt.config import RequestError
from minigpt.training import Callback, Trainer, trainer

STATISTICS = ("train/moe_balance_loss", "train/moe_max_load", "train/moe_router_entropy", "train/moe_z_loss")

LOGITS = '''
import torch.nn.functional as F
from minigpt import PretrainObjective

class FromLogits(PretrainObjective):
    """Makes the loss of the logits itself; with the routers' if ROUTERS."""

    def __init__(self, config, **given):
        super().__init__(**given)

    def training_step(self, model, batch):
        logits, targets = model(batch["ids"]), batch["targets"]
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100)
        if ROUTERS:
            loss = model.routers.attach(loss, targets)
        return loss, targets.numel(), {}
'''


@pytest.fixture
def settings(kit):
    def make(moe=(), **changes):
        experts = {"n_expert": 4, "n_expert_used": 2, "n_inner": 8} | dict(moe)
        return kit.config(model__moe=experts, **changes)

    return make


class Biases(Callback):
    """Each layer's bias after each step."""

    def __init__(self):
        self.after = {}

    def on_train_batch_end(self, trainer, step):
        self.after[step] = torch.stack([layer.balance_bias for layer in trainer.model.routers.layers])


def lines(kit, folder):
    return [line for line in kit.metrics(folder) if "train/loss" in line]


def test_the_statistics_are_logged(tmp_path, kit, settings):
    kit.train(settings(), tmp_path)
    for line in lines(kit, tmp_path):
        assert 1 <= line["train/moe_max_load"] <= 2  # two of four: no expert can have more than half of the choices
        assert 0 < line["train/moe_router_entropy"] <= math.log(4) + 1e-6
        assert line["train/moe_balance_loss"] == pytest.approx(1, abs=0.2) and line["train/moe_z_loss"] > 0
    assert all(key not in line for line in kit.metrics(tmp_path) for key in STATISTICS if "val/loss" in line)


def test_a_dense_run_logs_none(tmp_path, kit):
    kit.train(kit.config(training__max_steps=1), tmp_path)
    assert not [key for line in kit.metrics(tmp_path) for key in line if "moe" in key]


def test_the_loss_is_cross_entropy_alone(tmp_path, kit, settings):
    """However heavy the auxiliary losses are, the first step's loss is the same; the gradient is not."""
    first = []
    for i, moe in enumerate([{}, {"balance_weight": 100.0, "z_loss_weight": 100.0}]):
        kit.train(settings(moe, training__max_steps=1), tmp_path / str(i))
        first.append(lines(kit, tmp_path / str(i))[0])
    assert first[0]["train/loss"] == first[1]["train/loss"]
    assert first[1]["train/grad_norm"] > 2 * first[0]["train/grad_norm"]


def test_accumulation_changes_neither_the_loads_nor_the_bias(tmp_path, kit, settings):
    """Micro-batches of 1, 2 and 4 rows; the statistics that are means per token are equal but for rounding."""
    runs = []
    for size in (1, 2, 4):
        biases = Biases()
        changes = {"training__micro_batch": size, "training__max_steps": 3, "model__dropout": 0.0}
        kit.train(settings({"balance": "bias"}, **changes), tmp_path / str(size), callbacks=[biases])
        runs.append((biases.after, lines(kit, tmp_path / str(size))))
    for after, logged in runs[1:]:
        assert all(torch.equal(after[step], runs[0][0][step]) for step in (1, 2, 3))
        for line, other in zip(logged, runs[0][1], strict=True):
            for key in ("train/moe_max_load", "train/moe_router_entropy", "train/moe_z_loss"):
                assert line[key] == pytest.approx(other[key], rel=1e-4)


def test_the_gradient_is_the_mean_over_micro_batches(tmp_path, kit, settings):
    """A z-loss is a mean over tokens, so how a step is divided does not matter at all."""
    norms = []
    for size in (1, 4):
        moe = {"balance": "none", "z_loss_weight": 1.0}
        changes = {"training__micro_batch": size, "training__max_steps": 1, "model__dropout": 0.0}
        kit.train(settings(moe, **changes), tmp_path / str(size))
        norms.append(lines(kit, tmp_path / str(size))[0]["train/grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_the_loss_scale_reaches_the_auxiliary_losses(tmp_path, kit, settings, monkeypatch):
    """Scaling by a power of two and back is exact, so the weights are those of an fp32 run."""
    monkeypatch.setattr(trainer, "autocast", lambda precision, device: nullcontext())
    moe, changes = {"z_loss_weight": 0.1}, {"training__grad_clip": None, "training__max_steps": 3, "callbacks": {}}
    kit.train(settings(moe, training__precision="fp16", **changes), tmp_path / "scaled")
    kit.train(settings(moe, **changes), tmp_path / "plain")
    models = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("scaled", "plain")]
    assert models[0] == models[1]


def test_a_skipped_step_leaves_the_bias(tmp_path, kit, settings, monkeypatch):
    real = Trainer._gradient_norm
    monkeypatch.setattr(
        Trainer, "_gradient_norm", lambda self: torch.tensor(math.nan) if self.step + 1 == 3 else real(self)
    )
    biases = Biases()
    kit.train(settings({"balance": "bias"}), tmp_path, callbacks=[biases])
    changed = {step: not torch.equal(biases.after[step], biases.after[step - 1]) for step in range(2, 7)}
    assert not changed[3] and changed[2] and changed[4]


def test_balance_improves(tmp_path, kit, settings):
    """From a router that prefers one expert: without a counterweight, by the loss and by the bias."""
    loads = {}
    for kind, options in {"none": {}, "loss": {"balance_weight": 0.1}, "bias": {"balance_rate": 0.02}}.items():
        moe = {"n_expert": 8, "balance": kind} | options
        changes = {"training__max_steps": 32, "training__micro_batch": 4, "model__init_std": 0.2}
        changes |= {"model__norm": "layernorm", "model__norm_bias": True}
        changes |= {"callbacks": {}, "evaluation__every_steps": None, "optimizer__lr": 2e-3}
        kit.train(settings(moe, **changes), tmp_path / kind, callbacks=[OneSided()])
        loads[kind] = [line["train/moe_max_load"] for line in lines(kit, tmp_path / kind)]
    assert all(load[0] > 3.5 for load in loads.values())  # one expert of eight is a choice of every token
    late = {kind: sum(load[-8:]) / 8 for kind, load in loads.items()}
    assert late["none"] > 3.5 and late["loss"] < 2.7 and late["bias"] < 2.7


class OneSided(Callback):
    """Every token's best score is at first that of expert 0: its weights agree with the bias of the norm before it."""

    def on_train_start(self, trainer):
        for block in trainer.model.blocks:
            with torch.no_grad():
                block.mlp_norm.bias.fill_(0.5)
                block.mlp.router.weight[0] += 0.1


def test_killed_and_resumed_it_ends_with_the_same_bytes(tmp_path, kit, settings, chaos, killed):
    moe = {"balance": "bias", "z_loss_weight": 0.01, "n_shared": 1}
    expected, moments = kit.measure(chaos, settings(moe), tmp_path)
    for at in range(len(moments) // 3, len(moments), len(moments) // 3):
        chaos.reset(at)
        with pytest.raises(killed):
            kit.train(settings(moe), tmp_path / str(at))
        chaos.reset()
        kit.train(settings(moe), tmp_path / str(at))
        assert kit.outcome(tmp_path / str(at)) == expected


@pytest.mark.parametrize("routers", [True, False])
def test_a_loss_of_ones_own(tmp_path, kit, settings, routers):
    """With the routers' losses it is the same run; without them it is refused in one sentence."""
    (tmp_path / "own.py").write_text(LOGITS.replace("ROUTERS", str(routers)))
    own = settings(objective__kind=f"{tmp_path}/own.py:FromLogits")
    if not routers:
        with pytest.raises(RequestError, match=r"model\.routers\.attach"):
            kit.train(own, tmp_path / "own")
        return
    kit.train(own, tmp_path / "own")
    kit.train(settings(), tmp_path / "plain")
    for one, other in zip(lines(kit, tmp_path / "own"), lines(kit, tmp_path / "plain"), strict=True):
        assert one == pytest.approx(other, rel=1e-3)
