"""A folder with a good text and two runs, and the check of what a wrong request gives."""

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from minigpt.cli import main
from minigpt.storage import fs, list_checkpoints
from minigpt.training import trainer

TEXT = "".join("the quick brown fox jumps over the lazy dog\n"[i * 7 % 44] for i in range(2000))
SMALL = ["shakespeare-char", "model.n_layer=1", "model.n_head=2", "model.n_embd=32", "model.context_length=16",
         "training.batch_tokens=64", "training.micro_batch=2", "training.max_steps=4", "run.device=cpu",
         "run.threads=1", "loggers.console=quiet", "checkpoint.every_steps=2"]  # fmt: skip


@dataclass
class World:
    """A folder with a good text in `text.txt`, a run stopped half way in `run`, its twin that is over in `done`."""

    folder: Path
    patch: pytest.MonkeyPatch
    held: list = field(default_factory=list)

    def put(self, name: str, content: str | bytes = "") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def train(self, *overrides: object, run: str = "new", data: object = "text.txt") -> list[str]:
        data = self.folder / data if isinstance(data, str) and ":" not in data else data
        return ["train", *SMALL, f"data.train={data}", *map(str, overrides), "--run-dir", str(self.folder / run)]

    def fill_disk(self, name: str) -> None:
        """Make the disk full when something of this name is written."""
        full(self.patch, name)

    def content(self, folder: str = "") -> dict[str, bytes]:
        """Every file but locks."""
        files = [p for p in sorted((self.folder / folder).rglob("*")) if p.is_file() and p.name != ".lock"]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}


def full(patch: pytest.MonkeyPatch, name: str) -> None:
    """Make the disk full when something of this name is written."""
    real = fs.write_file

    def write(path: Path, data: bytes) -> None:
        if name in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, data)

    patch.setattr(fs, "write_file", write)


@pytest.fixture(scope="session")
def _runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs to copy: one stopped after step 2, one that is over."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIGPT_CACHE", str(folder / "cache"))
        patch.setattr(trainer, "peak_flops", lambda *arguments: None)
        world = World(folder, patch)
        assert main(world.train(run="done")) == 0
        full(patch, "step-00000004")
        assert main(world.train(run="run")) == 1
    shutil.rmtree(folder / "cache")
    assert [path.name for path in list_checkpoints(folder / "run")] == ["step-00000002"]
    return folder


@pytest.fixture
def world(_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(_runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainer, "peak_flops", lambda *arguments: None)
    made = World(tmp_path, monkeypatch)
    yield made
    for lock in made.held:
        lock.release()


def check_sentence(stderr: str, words: tuple[str, ...]) -> None:
    notes = " is dropped because "  # about inherited values; the sentence follows them
    said = [line for line in stderr.splitlines() if line.startswith("minigpt: ") and notes not in line]
    assert len(said) == 1 and stderr.splitlines()[-1] == said[0], stderr
    assert all(word in said[0] for word in words), said[0]
    assert "Traceback" not in stderr and "internal error" not in stderr and len(said[0]) < 600
    assert "[type=" not in stderr and "pydantic" not in stderr


@pytest.fixture
def one_sentence() -> Callable[[str, tuple[str, ...]], None]:
    """Check that this stderr is one sentence with these words."""
    return check_sentence


@pytest.fixture
def refused(world: World, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Run a case: one sentence, the right exit status, and every file as it was."""

    def check(make: Callable[[World], list[str]], status: int, words: tuple[str, ...]) -> None:
        arguments = make(world)
        before = world.content()
        capsys.readouterr()
        assert main(arguments) == status, capsys.readouterr().err
        check_sentence(capsys.readouterr().err, words)
        after = world.content()
        for name in ("metrics", "samples", "environment"):  # a run may have gone on before the disk was full
            before.pop(f"run/{name}.jsonl"), after.pop(f"run/{name}.jsonl")
        assert after == before
        assert not (world.folder / "new").is_dir()

    return check
