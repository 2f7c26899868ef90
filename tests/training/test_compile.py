"""training.compile: each block by itself, the same losses; without a compiler it is left out with one line."""

import logging
import shutil
import subprocess
import sys

import pytest
import torch

from minigpt.config import load_config
from minigpt.training import setup


def test_without_a_compiler_it_is_left_out_with_one_line(monkeypatch, caplog):
    monkeypatch.setattr(setup, "can_compile", lambda device: False)
    config, _ = load_config({"training": {"compile": True}})
    with caplog.at_level(logging.WARNING):
        settled, _ = setup.settle_hardware(config)
    assert settled.training.compile is False
    assert [record.message for record in caplog.records] == [
        "training.compile=true is left out: no compiler was found (install g++, or name one in CXX)"
    ]


@pytest.mark.parametrize(("found", "expected"), [({"g++"}, True), ({"my-cc"}, True), (set(), False)])
def test_which_compilers_count(monkeypatch, found, expected):
    monkeypatch.setenv("CXX", "my-cc")
    monkeypatch.setattr(shutil, "which", lambda name: name if name in found else None)
    assert setup.can_compile(torch.device("cpu")) is expected


@pytest.mark.slow
def test_the_compiler_is_not_imported_unless_it_is_asked_for(tmp_path):
    """It takes seconds and 70 MB."""
    code = """if True:
        import sys
        import minigpt
        model = {"n_layer": 1, "n_head": 1, "n_embd": 16, "context_length": 8}
        training = {"max_steps": 2, "batch_tokens": 16, "precision": "bf16"}
        data = {"train": {"text": "to be or not to be " * 20}}
        config = {"model": model, "training": training, "data": data, "tokenizer": {"kind": "char"}}
        minigpt.train(config, run_dir=sys.argv[1], run__device="cpu", loggers__console="quiet")
        assert "torch._inductor" not in sys.modules and "torch._dynamo" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
