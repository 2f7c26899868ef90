"""What a run saves on so many processes, read on so many others: weights, moments and averages, step by step."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import processes
import pytest
import torch

from minigpt.config import WorkError, load_config
from minigpt.storage import load_checkpoint, load_latest
from minigpt.storage.tensors import load_tensors

TOLERANCE = 1e-6  # a fused kernel rounds the last few numbers of a tensor otherwise than those before them


def settings(**mesh: int) -> Any:
    return load_config(
        {
            "run": {"device": "cpu"},
            "model": {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 8, "vocab_size": 19},
            "data": {"train": {"text": "abc"}},
            "optimizer": {"ema_decay": 0.9},
            "training": {"max_steps": 4, "batch_tokens": 96, "micro_batch": 1},
            "distributed": {"mesh": mesh},
        }
    )[0]


class Steps:
    """As much of a trainer as its state: the gradients follow from the step's number."""

    def __init__(self, config: Any, world: Any, run: Path) -> None:
        from minigpt.optim import Average, make_optimizer, parameter_groups
        from minigpt.parallel.build import fill, parallelise
        from minigpt.training.precision import LossScaler
        from minigpt.training.snapshots import BackgroundWriter

        nothing: Any = lambda *arguments: None  # noqa: E731
        self.config, self.run_dir, self.parallel = config, run, parallelise(config, world, torch.device("cpu"))
        self.model = self.parallel.model
        draw = torch.Generator().manual_seed(3)
        fill(self.parallel, [(name, torch.randn(size, generator=draw)) for name, size in self.parallel.shapes.items()])
        groups = parameter_groups(self.model.named_parameters(), 0.1)
        self.optimizer = make_optimizer(groups, config.optimizer, self.parallel)
        weights = {name: self.parallel.local(p.detach()) for name, p in self.model.named_parameters()}
        self.average = Average(weights, 0.9)
        self.writer, self.scaler = BackgroundWriter(enabled=True), LossScaler(enabled=False)
        self.journal = SimpleNamespace(restorations=0, rewind=nothing)
        self.logbook = SimpleNamespace(positions=dict, sync=nothing, truncate=nothing)
        self.seen, self.callbacks, self.say = SimpleNamespace(tokens={}), [], nothing
        self.step = self.tokens = self.skipped = self.bad_streak = self.first_bad = 0
        self.elapsed, self.best_loss, self.settled, self.data_fingerprint = 0.0, 1.0, True, ""
        self.stream = self.stop_reason = self.validation = self.tokenizer = self.objective = None

    def go(self, steps: int) -> "Steps":
        for _ in range(steps):
            self.step += 1
            for name, parameter in self.model.named_parameters():
                draw = torch.Generator().manual_seed(self.step * 1000 + sum(map(ord, name)))
                whole = torch.randn(self.parallel.shapes[name], generator=draw)
                parameter.grad = torch.zeros_like(parameter)
                self.parallel.local(parameter.grad).copy_(self.parallel.parts[name].cut(whole))
            self.optimizer.set_lr(0.01)
            self.optimizer.step(1.0)
            self.average.update(self.step)
        return self

    def save(self) -> "Steps":
        from minigpt.training.state import save_state

        save_state(self)  # type: ignore[arg-type]
        self.writer.wait()
        return self

    def resume(self) -> "Steps":
        from minigpt.training.resume import agreed
        from minigpt.training.state import load_state

        found = agreed(self.parallel.world, lambda: load_latest(self.run_dir, pytest.fail))
        assert found is not None
        load_state(self, found)  # type: ignore[arg-type]
        return self


def alone(run: Path) -> Steps:
    from minigpt.parallel.world import World

    return Steps(settings(), World(), run)


def on_several(run: str, mesh: dict[str, int], steps: int) -> list[str]:
    """In each process: go on from what is there, save, and what a checkpoint that cannot be read says."""
    from minigpt.parallel.launch import end_world, start_world
    from minigpt.training.resume import agreed

    config = settings(**mesh)
    world = start_world(config)
    Steps(config, world, Path(run)).resume().go(steps).save()
    said = []
    try:
        agreed(world, lambda: load_checkpoint(Path(run) / "damaged"))
    except WorkError as error:
        said.append(str(error))
    end_world(world)
    return said


def assert_equal_files(found: Path, expected: Path) -> None:
    for name in ("model_state", "optimizer_state"):
        ours, theirs = (getattr(load_checkpoint(folder), name) for folder in (found, expected))
        assert set(ours) == set(theirs)
        for key in theirs:
            assert ours[key].dtype == theirs[key].dtype
            assert torch.allclose(ours[key], theirs[key], rtol=0, atol=TOLERANCE), key


def check(tmp_path: Path, layouts: list[dict[str, int]]) -> None:
    """A step on one process, then one on each layout, each going on from the one before; then one on one process."""
    alone(tmp_path / "run").go(1).save()
    expected = alone(tmp_path / "expected").go(1).save()
    (tmp_path / "run" / "damaged").mkdir()
    for mesh in layouts:
        said = processes.run(int(np.prod(list(mesh.values()))), __file__, "on_several", str(tmp_path / "run"), mesh, 1)
        assert {tuple(one) for one in said} == {(f"{tmp_path}/run/damaged is damaged: MANIFEST.json is missing",)}
        expected.go(1).save()
        name = f"checkpoints/step-{expected.step:08d}"
        assert_equal_files(tmp_path / "run" / name, tmp_path / "expected" / name)
        plain = load_tensors(tmp_path / "run" / name / "model.safetensors")  # for whoever knows nothing of processes
        assert plain.keys() == expected.model.state_dict().keys()
    alone(tmp_path / "run").resume().go(1).save()
    expected.go(1).save()
    name = f"checkpoints/step-{expected.step:08d}"
    assert_equal_files(tmp_path / "run" / name, tmp_path / "expected" / name)
    files = {path.name for path in (tmp_path / "run" / name).iterdir()}
    assert files == {"MANIFEST.json", "config.json", "model.safetensors", "optimizer.safetensors", "trainer_state.json"}


def test_one_process_then_two_shards_then_one(tmp_path):
    check(tmp_path, [{"fsdp": 2}])


@pytest.mark.slow
def test_any_layout_goes_on_from_any_other(tmp_path):
    check(
        tmp_path,
        [{"fsdp": 4}, {"dp": 2}, {"dp": 2, "fsdp": 2}, {"tp": 2}, {"fsdp": 2, "tp": 2}, {"fsdp": 3}, {"pp": 2}],
    )


def test_a_checkpoint_of_another_network(tmp_path):
    alone(tmp_path).go(1).save()
    other = alone(tmp_path)
    name = "blocks.1.mlp.down.weight"
    assert name in other.parallel.parts
    part = other.parallel.parts[name]
    other.parallel.parts[name] = type(part).whole((32, 7))
    with pytest.raises(WorkError, match=r"step-00000001 is of another network: blocks.1.mlp.down.weight has the shape"):
        other.resume()
