"""`minigpt train` and `minigpt demo`: what they pass on, and what they make of the answer. The training is faked."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


@dataclass
class Trainer:
    """Stands in for `minigpt.training`."""

    status: int = 0
    message: str = ""
    calls: list[tuple[str, Any, dict[str, Any]]] = field(default_factory=list)

    def train(self, config: Any, **options: Any) -> SimpleNamespace:
        self.calls.append(("train", config, options))
        return SimpleNamespace(run_dir=Path("runs/x"), exit_status=self.status, message=self.message, is_main=True)

    def dry_run(self, config: Any, processes: int) -> SimpleNamespace:
        self.calls.append(("dry_run", config, {"processes": processes}))
        return SimpleNamespace(
            config_yaml="model:\n  n_layer: 2\n",
            lines=["1,000 parameters", "1 GB"],
            batch_text="First",
            as_dict=lambda: {"parameters": 1000},
        )

    def run_demo(self, out: Path | None, on_trained: Callable[[Path], object]) -> int:
        self.calls.append(("demo", None, {"out": out}))
        return self.status


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    fake = Trainer()
    for name, functions in (("training", ("train", "dry_run")), ("training.demo", ("run_demo",))):
        module = ModuleType(f"minigpt.{name}")
        module.__dict__.update({function: getattr(fake, function) for function in functions})
        monkeypatch.setitem(sys.modules, f"minigpt.{name}", module)
        if name == "training":
            monkeypatch.setattr("minigpt.training", module, raising=False)
    return fake


def test_train_passes_on_the_config_and_options(run: Callable, trainer: Trainer) -> None:
    line = ("train", "shakespeare-char", "data.train=x.txt", "model.n_layer=2", "--run-dir=runs/mine", "--resume=never")
    found = run(*line)
    assert (found.status, found.out, found.err) == (0, "", "")
    [(name, config, options)] = trainer.calls
    assert name == "train" and options == {"run_dir": Path("runs/mine"), "resume": "never"}
    assert (config.run.name, config.model.n_layer, config.loggers.console) == ("shakespeare-char", 2, "auto")


def test_options_may_stand_anywhere(run: Callable, trainer: Trainer) -> None:
    run("train", "--quiet", "shakespeare-char", "--run-dir", "a", "model.n_layer=2")
    [(_, config, options)] = trainer.calls
    assert options == {"run_dir": Path("a"), "resume": "auto"}
    assert (config.model.n_layer, config.loggers.console) == (2, "quiet")


def test_flags_are_settings(run: Callable, trainer: Trainer, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("loggers: {wandb: {enabled: true, project: mine}}")
    run("train", file, "--threads", 3)
    assert "is dropped because" in run("train", file, "--no-wandb").err
    run("train", "shakespeare-char", "--no-wandb", "-q", "--threads=2", "run.threads=1")
    (first, second, third) = [config for _, config, _ in trainer.calls]
    assert (first.run.threads, first.loggers.wandb.enabled, first.loggers.wandb.project) == (3, True, "mine")
    assert (second.run.threads, second.loggers.wandb.enabled) == (None, False)
    assert (third.run.threads, third.loggers.wandb.enabled, third.loggers.console) == (2, False, "quiet")
    for wrong in ("0", "-1", "many", "1.5"):
        assert "thread" in run("train", "shakespeare-char", "--threads", wrong).complaint
    assert len(trainer.calls) == 3


def test_the_report_is_named_before_the_outcome(run: Callable, trainer: Trainer, monkeypatch) -> None:
    reported: list[Path] = []
    monkeypatch.setattr(
        "minigpt.reporting.report_at_end", lambda folder, say: reported.append(folder) or folder / "report.html"
    )
    trainer.message = "trained 5 steps"
    found = run("train", "shakespeare-char")
    assert (found.status, found.err) == (0, "report: runs/x/report.html\ntrained 5 steps\n")
    assert reported == [Path("runs/x")]


@pytest.mark.parametrize("status", [0, 130, 143])
def test_status_and_message_of_the_run(run: Callable, trainer: Trainer, status: int) -> None:
    trainer.status, trainer.message = status, "stopped at step 3"
    found = run("train", "shakespeare-char")
    assert (found.status, found.out, found.err) == (status, "", "stopped at step 3\n")


def test_dry_run(run: Callable, trainer: Trainer) -> None:
    found = run("train", "shakespeare-char", "--dry-run")
    assert found.out == "model:\n  n_layer: 2\n1,000 parameters\n1 GB\nFirst\n"
    assert run("train", "shakespeare-char", "--dry-run", "--json").json == {"parameters": 1000}
    assert {name for name, _, _ in trainer.calls} == {"dry_run"}


def test_dropped_settings_are_said_before_the_run(run: Callable, trainer: Trainer) -> None:
    found = run("train", "shakespeare-char", "training.epochs=1")
    assert found.err.startswith("minigpt: training.max_steps=2000 is dropped because") and found.err.count("\n") == 1


@pytest.mark.parametrize("status", [0, 143])
def test_demo(run: Callable, trainer: Trainer, status: int) -> None:
    trainer.status = status
    assert run("demo", "--out", "here").status == status
    assert trainer.calls == [("demo", None, {"out": Path("here")})]
