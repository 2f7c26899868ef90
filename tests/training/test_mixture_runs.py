"""Runs on a mixture: what is counted and measured by source, and how it is shown."""

from pathlib import Path
from typing import Any

import pytest

from minigpt.config import load_config
from minigpt.objectives import make_objective
from minigpt.reporting import write_report
from minigpt.training.console.panel import Panel
from minigpt.training.console.state import State
from minigpt.training.loggers import RunInfo
from minigpt.training.setup import assemble

SOURCES = [
    {"text": "bead cab\nfed " * 60, "weight": 2, "name": "words"},
    {"text": "hag ebb deaf " * 50, "weight": 1, "name": "more"},
    {"text": "gag had " * 40, "weight": 1, "name": "rare"},
]
MIXED = {"data": {"train": SOURCES, "stages": [{"from_step": 4, "weights": {"words": 1, "more": 1}}]}}


@pytest.fixture
def mixed_run(kit, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    assert kit.train(kit.config(**MIXED), folder).exit_status == 0
    return folder


def test_tokens_are_counted_by_source(kit, mixed_run: Path) -> None:
    """Against the rows themselves, asked one by one which source they are of."""
    parts = assemble(load_config(mixed_run / "config.yaml")[0])
    objective: Any = make_objective(parts.config, parts.data, parts.tokenizer, parts.max_steps)
    seen = dict.fromkeys(objective.source_names, 0)
    lines = {line["step"]: line for line in kit.metrics(mixed_run) if "train/loss" in line}
    for step in range(1, 7):
        for index in range(4 * (step - 1), 4 * step):
            seen[objective.source_names[objective.row_source(index)]] += 16
        line = lines[step]
        assert {name: line[f"data/{name}/tokens"] for name in seen} == seen
        assert sum(seen.values()) == line["tokens"]
        for source, tokens in seen.items():
            windows = next(s for s in parts.data.sources if s.name == source).train
            assert line[f"data/{source}/epoch"] == pytest.approx(tokens / len(windows), rel=0.2)  # in whole windows
    assert lines[3]["data/rare/tokens"] > 0 and lines[6]["data/rare/tokens"] == lines[3]["data/rare/tokens"]


def test_the_validation_loss_is_the_mean_over_the_sources(kit, mixed_run: Path) -> None:
    parts = assemble(load_config(mixed_run / "config.yaml", ["evaluation.max_tokens=null"])[0])
    sets = dict(make_objective(parts.config, parts.data, parts.tokenizer).validation_sets)  # type: ignore[attr-defined]
    assert set(sets) == {"words", "more", "rare"}
    settings = kit.config(**MIXED, evaluation__max_tokens=None)
    folder = mixed_run.parent / "whole"
    kit.train(settings, folder)
    line = next(line for line in kit.metrics(folder) if "val/loss" in line)
    targets = {name: len(tokens) - 1 for name, tokens in parts.data.validation}
    total = sum(line[f"val/{name}/loss"] * count for name, count in targets.items())
    assert line["val/loss"] == pytest.approx(total / sum(targets.values()), rel=1e-6)


def test_a_run_on_one_source_has_no_metrics_by_source(kit, tmp_path: Path) -> None:
    kit.train(kit.config(training__max_steps=2), tmp_path / "run")
    assert not any(key.startswith("data/") or key.count("/") > 1 for line in kit.metrics(tmp_path / "run")
                   for key in line if not key.startswith("monitor/"))  # fmt: skip


def test_it_is_shown(kit, mixed_run: Path, tmp_path: Path) -> None:
    from rich.console import Console

    state = State(RunInfo(mixed_run, {"evaluation": {"every_steps": 3}}, "mixed", 6, 6), 0.0)
    lines = Panel(Console(width=80, height=40, force_terminal=True)).lines(state, 1.0)
    shown = "\n".join(line.plain for line in lines)
    losses = {n: f", val {v:.4f}" for n, v in _losses(kit.metrics(mixed_run)).items()}
    assert len(losses) == 3 and all(f"{name} " in shown and said in shown for name, said in losses.items())
    assert max(line.cell_len for line in lines) < 80
    page = write_report([mixed_run], tmp_path / "report.html").read_text()
    for title in ("Tokens by source", "Epochs by source", "Validation loss by source"):
        assert title in page


def _losses(lines: list[dict[str, Any]]) -> dict[str, float]:
    """The newest validation loss of each source."""
    newest = next(line for line in reversed(lines) if "val/loss" in line)
    return {key.split("/")[1]: value for key, value in newest.items() if key.startswith("val/") and key.count("/") == 2}
