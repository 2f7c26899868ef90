"""Runs with Muon, with groups and with an average of the weights: resumed to the byte, evaluated and exported alike."""

import contextlib

import pytest
import torch
from safetensors.torch import load_file

import minigpt
from minigpt.config import RequestError
from minigpt.storage import list_checkpoints

SETTINGS = {
    "optimizer": {
        "name": "muon",
        "lr": 1e-2,
        "muon": {"normalise": True, "cautious": True, "momentum_warmup_steps": 4, "lr": 2e-2},
        "groups": [{"match": "embed.weight", "lr_scale": 2.0, "weight_decay": 0.0}],
        "ema_decay": 0.9,
    }
}


def test_killed_and_resumed(tmp_path, kit, chaos, killed):
    settings = kit.config(**SETTINGS)
    expected, moments = kit.measure(chaos, settings, tmp_path)
    for at in (len(moments) // 3, 2 * len(moments) // 3):
        folder = tmp_path / f"killed-{at}"
        chaos.reset(at)
        with contextlib.suppress(killed):
            kit.train(settings, folder)
        chaos.reset()
        assert kit.train(settings, folder).exit_status == 0
        assert kit.outcome(folder) == expected, moments[at]


def test_what_is_evaluated_is_the_average_and_what_is_exported(tmp_path, kit):
    """The finished model's loss, measured anew over the whole validation text, is the last one that was reported."""
    settings = kit.config(**SETTINGS, evaluation={"every_steps": 3})
    result = kit.train(settings, tmp_path / "run")
    last = [line["val/loss"] for line in kit.metrics(result.run_dir) if "val/loss" in line][-1]
    loaded = minigpt.load(result.run_dir)
    ids = loaded.tokenizer.encode(kit.text())
    val = torch.tensor(ids[len(ids) - round(settings.data.val_fraction * len(ids)) :])
    nats, count = 0.0, 0
    for start in range(0, len(val) - 1, 16):
        row = val[start : start + 17]
        nats += float(loaded.model.token_losses(row[None, :-1], row[None, 1:]).sum())
        count += len(row) - 1
    assert nats / count == pytest.approx(last, rel=1e-5)
    folder = list_checkpoints(result.run_dir)[-1]
    average, others = load_file(folder / "model.safetensors"), load_file(folder / "optimizer.safetensors")
    assert all(not torch.equal(others[f"raw:{name}"], tensor) for name, tensor in average.items() if tensor.dim() == 2)


def test_training_itself_is_not_changed_by_the_average(tmp_path, kit):
    optimizer = {key: value for key, value in SETTINGS["optimizer"].items() if key != "ema_decay"}
    runs = [kit.train(kit.config(optimizer=one), tmp_path / name).run_dir
            for name, one in (("with", SETTINGS["optimizer"]), ("without", optimizer))]  # fmt: skip
    losses = [[line["train/loss"] for line in kit.metrics(run) if "train/loss" in line] for run in runs]
    assert losses[0] == losses[1]


def test_a_pattern_without_a_parameter_ends_in_one_sentence(tmp_path, kit):
    settings = kit.config(optimizer={"groups": [{"match": "heads.*", "lr_scale": 2.0}]})
    with pytest.raises(RequestError, match=r"no parameter that is trained matches 'heads\.\*'"):
        kit.train(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_begins_with_the_state_of_another_optimizer_leaves_nothing_behind(tmp_path, kit):
    result = kit.train(kit.config(training__max_steps=2), tmp_path / "origin")
    for optimizer, said in (({"name": "muon"}, "has blocks.0"), ({"groups": [{"match": "x"}]}, "matches 'x'")):
        settings = kit.config(optimizer=optimizer, training__max_steps=4)
        with pytest.raises(RequestError, match=said):
            kit.train(settings, tmp_path / "run", resume=str(result.run_dir))
        assert not (tmp_path / "run").exists()
    settings = kit.config(optimizer={"lr": 1e-2, "ema_decay": 0.9}, training__max_steps=4)
    assert kit.train(settings, tmp_path / "run", resume=str(result.run_dir)).exit_status == 0
