"""A copy of the examples to play with, and ways to run them, small and in this process."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from minigpt.cli import main

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TINY = (
    "training.max_steps=4", "training.batch_tokens=128", "model.n_embd=32", "model.n_layer=1", "run.device=cpu",
    "run.threads=1", "evaluation.every_steps=2", "evaluation.max_tokens=256", "loggers.console=quiet",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINIGPT_TRUST_CODE", raising=False)


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(EXAMPLES, tmp_path / "own", ignore=shutil.ignore_patterns("*.ipynb", "__pycache__")))


@pytest.fixture
def tiny() -> Callable[..., list[str]]:
    """`tiny(NAME, FOLDER, RUN)`: the command that trains an example for four small steps."""

    def command(name: str, folder: Path = EXAMPLES, run: str = "run") -> list[str]:
        return ["train", str(folder / f"{name}.yaml"), *TINY, "--run-dir", run]

    return command


@pytest.fixture
def trained(tiny: Callable[..., list[str]]) -> Callable[..., Path]:
    """`trained(NAME, FOLDER, OVERRIDES...)`: its run folder."""

    def run(name: str, folder: Path = EXAMPLES, *overrides: str) -> Path:
        assert main([*tiny(name, folder), *overrides]) == 0
        return Path("run")

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that cannot be done, and give the one sentence that it says."""

    def run(*arguments: object, status: int = 2) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == status
        err = capsys.readouterr().err
        said = [line for line in err.splitlines() if line.startswith("minigpt: ")]
        lines = [line for line in said if " is dropped because " not in line]
        assert len(lines) == 1 and err.splitlines()[-1] == lines[0] and "Traceback" not in err, err
        assert len(lines[0]) < 600 and "pydantic" not in lines[0], lines[0]
        return lines[0].removeprefix("minigpt: ")

    return run
