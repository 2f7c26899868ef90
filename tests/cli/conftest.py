"""A way to run command lines in this process, and a tiny untrained model to run them on."""

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from minigpt.cli import main

ALPHABET = "\n abcdefghijklmnopqrstuvwxyzäß€🙂"


@dataclass(frozen=True)
class Outcome:
    """What a command line did."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.out.count("\n") == 1, "one JSON object and nothing else"
        return json.loads(self.out)

    @property
    def complaint(self) -> str:
        """The one line on stderr of a request or work that failed."""
        assert self.status in (1, 2), self
        assert self.err.startswith("minigpt: ") and self.err.endswith("\n") and self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err and self.out == ""
        return self.err


Run = Callable[..., Outcome]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `minigpt ARGUMENTS...` in this process. `stdin` is bytes."""

    def command(*arguments: object, stdin: bytes = b"") -> Outcome:
        capfd.readouterr()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Outcome(status, out, err)

    return command


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two tiny layers with random weights and one id a character."""
    import torch

    from minigpt.config import ModelConfig
    from minigpt.model import GPT
    from minigpt.storage import save_model
    from minigpt.tokenizer import CharTokenizer

    tokenizer = CharTokenizer.from_texts([ALPHABET])
    config = ModelConfig(
        n_layer=2, n_head=2, n_embd=32, context_length=16, vocab_size=tokenizer.vocab_size, tie_embeddings=False
    )
    model = GPT(config)
    model.init_weights(torch.Generator().manual_seed(1))
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder, config, model.state_dict(), tokenizer)
    return folder


@pytest.fixture
def run_folder(model_folder: Path, tmp_path: Path) -> Path:
    """A finished run with that model, trained (it says) on a text of 600 characters."""
    import shutil

    text = tmp_path / "text.txt"
    text.write_text("the quick fox\n" * 40 + "jumps over a dog\n" * 4, encoding="utf-8")
    folder = tmp_path / "runs" / "tiny"
    shutil.copytree(model_folder, folder / "model")
    (folder / "config.yaml").write_text(f"data: {{train: {text}, val_fraction: 0.1}}\ntokenizer: {{kind: char}}\n")
    return folder
