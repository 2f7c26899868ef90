"""A disk that can be stopped or broken at any call, and small things to save."""

import errno
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest
import torch

from minigpt.config import ModelConfig
from minigpt.storage import fs, list_checkpoints, save_checkpoint

OPERATIONS = [name for name, value in vars(fs).items() if isinstance(value, FunctionType)]


class Killed(BaseException):
    """The process is dead: nothing that runs afterwards (cleaning up included) reaches the disk."""


class FaultyDisk:
    """Counts the calls in `minigpt.storage.fs`, kills the process at one of them, or makes some fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.kill: tuple[int, str] | None = None
        self.fail: Callable[[int, str], BaseException | None] = lambda number, name: None
        self.dead = False
        for name in OPERATIONS:
            monkeypatch.setattr(fs, name, self._wrap(name, getattr(fs, name)))

    def reset(self, kill: tuple[int, str] | None = None) -> None:
        """Start counting again; with `kill=(n, moment)` call n is the last: before, during or after it."""
        self.calls, self.kill, self.dead = [], kill, False
        self.fail = lambda number, name: None

    def _wrap(self, name: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(path: Path, *rest: Any) -> None:
            if self.dead:
                raise Killed
            number = len(self.calls)
            self.calls.append(name)
            error = self.fail(number, name)
            if error is not None:
                raise error
            if self.kill is None or self.kill[0] != number:
                return real(path, *rest)
            self.dead = True
            if self.kill[1] == "during":
                _half(name, path, *rest)
            elif self.kill[1] == "after":
                real(path, *rest)
            raise Killed

        return call


def _half(name: str, path: Path, *rest: Any) -> None:
    """What a call leaves that is interrupted in the middle; renames and the like have no middle."""
    if name == "write_file":
        path.write_bytes(rest[0][: len(rest[0]) // 2])
    elif name == "remove_tree":
        for item in sorted(path.iterdir())[::2]:
            shutil.rmtree(item) if item.is_dir() else item.unlink()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FaultyDisk:
    return FaultyDisk(monkeypatch)


@pytest.fixture
def killed() -> type[BaseException]:
    return Killed


@pytest.fixture
def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FakeTokenizer:
    """Saves the two files that a tokenizer saves."""

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0, "b": 1}}}')
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


@pytest.fixture
def tokenizer() -> FakeTokenizer:
    return FakeTokenizer()


CONFIG = ModelConfig(n_layer=1, n_head=2, n_embd=8, vocab_size=5, context_length=4, init_from="/somewhere/else")


def tensors(step: int, size: int = 40) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "embed.weight": torch.randn(5, 8, generator=generator),
        "norm.weight": torch.randn(size, generator=generator),
    }


def save(run: Path, step: int, tokenizer=None, loss: float | None = None, salt: int = 0, **changes) -> Path:
    arguments = {
        "model_config": CONFIG,
        "model_state": tensors(step + salt),
        "optimizer_state": {f"{name}.exp_avg": -t for name, t in tensors(step + salt).items()},
        "trainer_state": {"step": step, "lr": 0.1 + step * 1e-17, "losses": [1 / 3, math.inf], "salt": salt},
        "tokenizer": tokenizer,
        "loss_for_best": loss,
    }
    return save_checkpoint(run, step, **{**arguments, **changes})


def is_exactly(checkpoint, step: int, salt: int = 0) -> bool:
    return (
        checkpoint.step == step
        and checkpoint.trainer_state
        == {"step": step, "lr": 0.1 + step * 1e-17, "losses": [1 / 3, math.inf], "salt": salt}
        and all(torch.equal(checkpoint.model_state[name], t) for name, t in tensors(step + salt).items())
        and all(torch.equal(checkpoint.optimizer_state[f"{n}.exp_avg"], -t) for n, t in tensors(step + salt).items())
    )


def steps(run: Path) -> list[str]:
    return [path.name for path in list_checkpoints(run)]


def leftovers(run: Path) -> list[str]:
    return [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]


@pytest.fixture
def kit() -> SimpleNamespace:
    """Small checkpoints whose content follows from their step."""
    return SimpleNamespace(
        config=CONFIG, save=save, is_exactly=is_exactly, steps=steps, leftovers=leftovers, tensors=tensors
    )
