"""training.compile: each block by itself, the same losses; without a compiler it is left out with one line."""

import logging
import shutil

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
