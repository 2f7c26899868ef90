"""A run that begins with a model: it takes that model's network and tokenizer, whatever preset it is based on."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import minigpt
from minigpt.cli import main
from minigpt.config import RequestError, load_config
from minigpt.training.network import settle_network

WEIGHTS = ["run.device=cpu", "run.threads=1", "training.max_steps=1", "optimizer.lr=1e-9",
           "schedule.min_lr=0", "evaluation.max_tokens=64"]  # fmt: skip


@pytest.fixture
def first(tmp_path: Path, kit: Any) -> Path:
    """A finished run of a network that no preset has."""
    settings = kit.config(training__max_steps=1, model__norm="layernorm", model__rope_theta=500.0, model__mlp="relu2")
    kit.train(settings, tmp_path / "first")
    return tmp_path / "first"


def test_a_preset_and_a_model(first: Path, tmp_path: Path, kit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    text = kit.config().data.train[0].text
    (tmp_path / "my.txt").write_text(text)
    begin = [f"data.train={tmp_path / 'my.txt'}", f"model.init_from={first}", *WEIGHTS, "training.batch_tokens=64"]
    run = ["train", "shakespeare-char", *begin, "--run-dir", str(tmp_path / "tuned")]
    assert main(run) == 0
    said = capsys.readouterr().err
    assert "the preset's network is dropped because model.init_from brings its own" in said
    mine, there = minigpt.load(tmp_path / "tuned"), minigpt.load(first)
    assert mine.config.model_copy(update={"dropout": 0.1, "init_std": 0.02}) == there.config
    assert mine.tokenizer is not None and there.tokenizer is not None
    assert mine.tokenizer.encode(text) == there.tokenizer.encode(text)
    for name, tensor in there.model.state_dict().items():
        torch.testing.assert_close(mine.model.state_dict()[name], tensor, atol=1e-6, rtol=0)
    written = yaml.safe_load((tmp_path / "tuned" / "config.yaml").read_text())
    assert written["training"]["micro_batch"] == 4  # the preset's 12 rows are for its network and batch
    assert written["model"]["rope_theta"] == 500.0 and "tokenizer" not in written
    # the run's own config repeats it, and the run goes on (here: is finished) without the model that it began with
    again = ["train", str(tmp_path / "tuned" / "config.yaml"), "--run-dir", str(tmp_path / "again")]
    assert main(again) == 0
    assert (tmp_path / "again/model/model.safetensors").read_bytes() == (
        tmp_path / "tuned/model/model.safetensors"
    ).read_bytes()
    shutil.rmtree(first)
    capsys.readouterr()
    assert main(run) == 0 and "is finished" in capsys.readouterr().err


def test_keys_that_were_set_must_be_the_models(first: Path) -> None:
    config = {"model": {"init_from": str(first), "rope_theta": 500.0, "norm": "layernorm", "dropout": 0.3}}
    more = {"data": {"train": "x.txt"}, "training": {"max_steps": 1, "batch_tokens": 64}}
    model = settle_network(load_config(config | more)[0]).model
    assert (model.mlp, model.context_length, model.dropout, model.n_layer) == ("relu2", 16, 0.3, 1)
    config["model"]["rope_theta"] = 10000.0  # the default, but somebody wrote it
    with pytest.raises(RequestError, match=r"another network: model.rope_theta=10000.0 is 500.0 there$"):
        settle_network(load_config(config | more)[0])


def test_rows_of_its_context_must_fill_the_batch(first: Path) -> None:
    more = {"data": {"train": "x.txt"}, "training": {"max_steps": 1, "batch_tokens": 40}}
    config, _ = load_config({"model": {"init_from": str(first)}} | more)
    with pytest.raises(
        RequestError, match=r"^training.batch_tokens=40 is not a multiple of model.context_length=16: use 32 or 48$"
    ):
        settle_network(config)


def test_options_of_a_part_are_filled_one_by_one(tmp_path: Path, kit: Any) -> None:
    kit.train(kit.config(training__max_steps=1, model__moe={"n_expert": 3}), tmp_path / "first")
    more = {"data": {"train": "x.txt"}, "training": {"max_steps": 1, "batch_tokens": 64}}
    config = {"model": {"init_from": str(tmp_path / "first"), "moe": {"balance_weight": 0.5}}} | more
    moe = settle_network(load_config(config)[0]).model.moe
    assert (moe.n_expert, moe.balance_weight) == (3, 0.5)


def test_code_of_a_model_runs_only_if_somebody_said_so(
    tmp_path: Path, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MINIGPT_TRUST_CODE", raising=False)
    code = """
from torch import nn

class Part(nn.Module):
    def __init__(self, config, *, model):
        super().__init__()
        self.up = nn.Linear(model.n_embd, model.n_embd, bias=False)

    def forward(self, x):
        return self.up(x)
"""
    (tmp_path / "part.py").write_text(code)
    part = f"{tmp_path / 'part.py'}:Part"
    kit.train(kit.config(training__max_steps=1, model__mlp=part), tmp_path / "first")
    more = {"data": {"train": "x.txt"}, "training": {"max_steps": 1, "batch_tokens": 64}}
    config = {"model": {"init_from": str(tmp_path / "first")}} | more
    with pytest.raises(RequestError, match="MINIGPT_TRUST_CODE"):
        settle_network(load_config(config)[0])
    config["model"]["mlp"] = part  # who names the file has read it
    assert settle_network(load_config(config)[0]).model.n_layer == 1
