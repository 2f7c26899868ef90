"""Runs and checkpoints with tokenizers that are native files, with and without a tokenizer.json beside them."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import minigpt
from minigpt.config import ModelConfig
from minigpt.storage import load_checkpoint, resolve_model, save_checkpoint
from minigpt.tokenizer import Tokenizer, load_tokenizer

pytest.importorskip("sentencepiece")

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "some", "lazy", "dogs", "again")
TEXT = "".join(" ".join(random.Random(n).choices(WORDS, k=9)) + "\n" for n in range(60))


def settings(tokenizer: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": {"device": "cpu", "threads": 1},
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 32, "context_length": 16},
        "tokenizer": tokenizer,
        "data": {"train": {"text": TEXT}},
        "training": {"max_steps": 4, "batch_tokens": 64, "micro_batch": 2},
        "evaluation": {"every_steps": 2},
        "checkpoint": {"every_steps": 2},
        "loggers": {"console": "quiet"},
    }


@pytest.mark.parametrize("kind", [pytest.param("unigram", marks=pytest.mark.slow), "sentencepiece-bpe"])
def test_a_run_with_a_trained_model(kind: str, tmp_path: Path) -> None:
    result = minigpt.train(settings({"kind": kind, "vocab_size": 300}), run_dir=tmp_path / "run")
    assert result.exit_status == 0
    check_folders(tmp_path / "run", translated=True)
    shapes = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert shapes["vocab_size"] == 300


@pytest.mark.slow
def test_a_run_with_a_model_that_no_tokenizer_json_says(test_data: Callable[[str], Path], tmp_path: Path) -> None:
    path = test_data("tokenizer_vectors/sentencepiece/test_model.model")
    wanted = settings({"kind": "file", "path": str(path)})
    assert minigpt.train(wanted, run_dir=tmp_path / "run").exit_status == 0
    check_folders(tmp_path / "run", translated=False)
    original = load_tokenizer(path)
    assert load_tokenizer(tmp_path / "run").fingerprint == original.fingerprint
    # Another run goes on from a checkpoint, whose tokenizer is the one it takes.
    wanted["training"]["max_steps"] = 6
    origin = tmp_path / "run" / "checkpoints" / "step-00000004"
    again = minigpt.train(wanted, run_dir=tmp_path / "more", resume=str(origin))
    assert again.exit_status == 0
    check_folders(tmp_path / "more", translated=False)


def check_folders(run: Path, *, translated: bool) -> None:
    """The tokenizer is in every folder that has one, is the same in all, and is found by every command."""
    folders = [run / "tokenizer", run / "model", *sorted((run / "checkpoints").glob("step-*"))]
    assert len(folders) >= 3
    prints = {load_tokenizer(folder).fingerprint for folder in folders}
    assert len(prints) == 1
    for folder in folders:
        assert (folder / "tokenizer.model").is_file()
        assert (folder / "tokenizer.json").is_file() == translated
        files = json.loads((folder / "MANIFEST.json").read_text())["files"]
        assert "tokenizer.model" in files and ("tokenizer.json" in files) == translated
    for place in (run, folders[-1], run / "checkpoints" / "last"):
        loaded = minigpt.load(place)
        assert isinstance(loaded.tokenizer, Tokenizer) and loaded.tokenizer.fingerprint in prints
        assert isinstance(loaded.generate("the quick", max_new_tokens=4, seed=1).text, str)


def test_a_checkpoint_names_the_tokenizer_file(tmp_path: Path) -> None:
    class Native:
        def __init__(self, *names: str) -> None:
            self.names = names

        def save(self, folder: Path) -> None:
            for name in self.names:
                (folder / name).write_bytes(b"x")

    cases = {
        ("tokenizer.json", "tokenizer.model"): "tokenizer.json",
        ("tokenizer.model", "tokenizer_config.json"): "tokenizer.model",
        ("tokenizer.bin",): "tokenizer.bin",
        ("chat_template.jinja",): None,
    }
    config = ModelConfig(n_layer=1, n_head=2, n_embd=8, vocab_size=5, context_length=4)
    for step, (names, expected) in enumerate(cases.items(), start=1):
        folder = save_checkpoint(
            tmp_path,
            step,
            model_config=config,
            model_state={"embed.weight": torch.zeros(5, 8)},
            optimizer_state={},
            trainer_state={},
            tokenizer=Native(*names),
        )
        path = None if expected is None else folder / expected
        assert load_checkpoint(folder).tokenizer_path == path and resolve_model(folder).tokenizer_path == path
