"""A run that goes on with other numbers of processes than it began with: the rows and losses of one left alone."""

import hashlib
import importlib.util
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest

from minigpt.storage import build_model, list_checkpoints, resolve_model

HERE = str(Path(__file__).resolve())


def runs() -> Any:
    """The runs of `test_processes.py`, in a process that has no pytest too."""
    spec = importlib.util.spec_from_file_location("runs_of_a_test", Path(HERE).with_name("test_processes.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def session(folder: str, changes: dict[str, Any], stop: int | None) -> list[tuple[int, str]]:
    """Train until a signal comes after step `stop`, or to the end; (step, hash) of the rows trained on."""
    from minigpt.training import Callback, Trainer

    seen: list[tuple[int, str]] = []
    usual = Trainer._train_step

    def watched(trainer: Any, step: int, batch: Any) -> Any:
        for micro_batch in batch.micro_batches:
            for row in zip(*(micro_batch[name] for name in sorted(micro_batch)), strict=True):
                seen.append((step, hashlib.sha256(b"".join(t.numpy().tobytes() for t in row)).hexdigest()))
        return usual(trainer, step, batch)

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, step: int) -> None:
            if step == stop and trainer.world.is_main:
                os.kill(os.getpid(), signal.SIGTERM)

    Trainer._train_step = watched  # type: ignore[method-assign]
    try:
        kit, settings = runs().kit(), runs().settings(**changes)
        status = kit.train_quietly(settings, Path(folder), callbacks=[Stop()]).exit_status
    finally:
        Trainer._train_step = usual  # type: ignore[method-assign]
    assert status == (0 if stop is None else 143)
    return seen


def go_on(folder: Path, mesh: dict[str, int], stop: int | None, changes: dict[str, Any]) -> set[tuple[int, str]]:
    changes = changes | {"distributed": {"mesh": mesh}}
    n = int(np.prod(list(mesh.values())))
    if n == 1:
        return set(session(str(folder), changes, stop))
    return set().union(*processes.run(n, HERE, "session", str(folder), changes, stop))


def check(tmp_path: Path, meshes: list[dict[str, int]], steps: int, **changes: Any) -> None:
    """Sessions of `steps` steps on each of the meshes make the run of one process."""
    changes |= {"training__max_steps": steps * len(meshes), "evaluation__every_steps": steps + 1}
    expected = go_on(tmp_path / "whole", {}, None, changes)
    found: set[tuple[int, str]] = set()
    for number, mesh in enumerate(meshes, start=1):
        found |= go_on(tmp_path / "run", mesh, None if number == len(meshes) else number * steps, changes)
        last = list_checkpoints(tmp_path / "run")[-1]
        assert last.name == f"step-{number * steps:08d}"
        build_model(resolve_model(last).path)  # any command that takes a model takes it
    assert found == expected
    runs().require_same_metrics(tmp_path / "whole", tmp_path / "run")
    states = [
        json.loads((list_checkpoints(tmp_path / run)[-1] / "trainer_state.json").read_text())
        for run in ("whole", "run")
    ]
    assert states[0]["trainer"]["tokens"] == states[1]["trainer"]["tokens"]


def test_one_two_one(tmp_path: Path) -> None:
    check(tmp_path, [{}, {"fsdp": 2}, {}], 3)


ALONE: dict[str, int] = {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("two", "four", "changes"),
    [
        ({"fsdp": 2}, {"fsdp": 4}, {}),
        ({"dp": 2}, {"dp": 2, "fsdp": 2}, {"optimizer__ema_decay": 0.9}),
        ({"fsdp": 2}, {"dp": 4}, {"optimizer__name": "muon"}),
        ({"tp": 2}, {"tp": 2, "fsdp": 2}, {}),
        ({"pp": 2}, {"pp": 2, "dp": 2}, {"model__n_layer": 2}),
    ],
)
def test_any_number_goes_on_from_any_other(
    two: dict[str, int], four: dict[str, int], changes: dict[str, Any], tmp_path: Path
) -> None:
    check(tmp_path, [ALONE, two, four, ALONE, four, two, ALONE], 5, **changes)
