"""A run on several processes is the run of one: the same rows, losses, samples and files, whatever ends it."""

import importlib.util
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import processes
import pytest
from safetensors.numpy import load_file

from minigpt.config import RequestError, WorkError
from minigpt.objectives import IGNORED
from minigpt.training.batches import step_batch

HERE = str(Path(__file__).resolve())

TOLERANCE = 3e-6
"""Of losses (about 5 nats) over 50 steps, in fp32: what another order of the same sums makes of them in one process
as well. (A higher learning rate makes a run chaotic: then that grows a thousandfold.)"""

DOCUMENTS = "".join(f"{word * n}<|endoftext|>" for n, word in enumerate(["bead ", "cab ", "hag ebb "] * 7, start=1))
SOURCES = [{"text": DOCUMENTS, "weight": 2, "name": "a"}, {"text": "fed gag " * 90, "weight": 1, "name": "b"}]
MASKED = {"data__train": SOURCES, "data__packing": "documents", "data__document_mask": True}
"""Rows of documents, padded: their micro-batches have unequally many targets."""


def settings(**changes: Any) -> Any:
    usual = {
        "model__dropout": 0.0, "optimizer__lr": 1e-3, "training__max_steps": 50, "training__micro_batch": 1,
        "evaluation__every_steps": 10, "evaluation__max_tokens": None, "checkpoint__every_steps": 20,
        "checkpoint__best": False, "callbacks__sample": {"every_steps": 10, "max_new_tokens": 12, "prompt": "a"},
        "tokenizer": {"kind": "bpe", "vocab_size": 280},
    }  # fmt: skip
    return kit().config(**usual | ({} if "data" in changes else MASKED) | changes)


def kit() -> Any:
    """What pytest gives tests of this folder, in a process that has no pytest."""
    spec = importlib.util.spec_from_file_location("kit_of_a_test", Path(HERE).with_name("conftest.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_here(folder: str, changes: dict[str, Any], disturb: str = "", at: int = 0) -> tuple[Any, ...]:
    """Train in this process; its exit status and whether it spoke, or the error and its sentence."""
    from minigpt.training import Callback, trainer
    from minigpt.training.histograms import Histograms

    trainer.peak_flops = lambda *arguments: None  # type: ignore[assignment]  # measures the machine
    last = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1
    if disturb == "data" and last:
        from minigpt.objectives import PretrainObjective

        PretrainObjective.row = _unreadable  # type: ignore[method-assign]
    if disturb == "config" and last:
        changes = changes | {"optimizer__lr": 2e-3}

    class Disturbing(Callback):
        def on_train_batch_end(self, trainer: Any, step: int) -> None:
            if step == at and last and disturb == "signal":
                os.kill(os.getpid(), signal.SIGUSR1)
            if step == at and last and disturb == "stop":
                trainer.stop("enough")

    class Console(kit().Console):  # type: ignore[misc]
        def histograms(self, step: int, values: dict[str, Any]) -> None:
            seen = {name: [one.counts, one.edges] for name, one in values.items()}
            Path(folder, f"histograms-{step}.json").write_text(json.dumps(seen))

    console, watching = Console(), [Disturbing(), Histograms(25)]
    try:
        result = kit().train_quietly(settings(**changes), Path(folder), callbacks=watching, console=console)
    except (RequestError, WorkError) as error:
        return type(error).__name__, str(error)
    return result.exit_status, result.is_main, len(console.lines) > 0


def _unreadable(self: Any, index: int) -> Any:
    raise WorkError("the disk is gone")


def on(n: int, folder: Path, changes: dict[str, Any] | None = None, disturb: str = "", at: int = 0) -> list[Any]:
    if n == 1:
        return [run_here(str(folder), changes or {}, disturb, at)]
    return processes.run(n, HERE, "run_here", str(folder), changes or {}, disturb, at)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def require_same_metrics(one: Path, other: Path) -> None:
    a, b = kit().metrics(one), kit().metrics(other)
    assert [line.keys() for line in a] == [line.keys() for line in b]
    for x, y in zip(a, b, strict=True):
        for key in x:
            if key.endswith("loss"):
                assert abs(x[key] - y[key]) < TOLERANCE, f"{key} of step {x['step']}"
            elif isinstance(x[key], int):
                assert x[key] == y[key]
            else:
                assert y[key] == pytest.approx(x[key], rel=1e-4, abs=1e-7)


def require_same_histograms(one: Path, other: Path) -> None:
    for step in (25, 50):
        a, b = (json.loads((run / f"histograms-{step}.json").read_text()) for run in (one, other))
        assert list(a) == list(b) and any("gradient" in name for name in a)
        for name, (counts, edges) in a.items():
            assert sum(counts) == sum(b[name][0])
            np.testing.assert_allclose(b[name][1], edges, rtol=1e-3, atol=1e-5, err_msg=name)


def require_same_run(one: Path, other: Path) -> None:
    """Everything that a run leaves behind, but for rounding."""
    assert names(one) == names(other)
    require_same_metrics(one, other)
    assert (one / "samples.jsonl").read_text() == (other / "samples.jsonl").read_text()
    for path in one.rglob("*.safetensors"):
        mine, theirs = load_file(path), load_file(other / path.relative_to(one))
        assert mine.keys() == theirs.keys()
        for name in mine:
            np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-3, atol=2e-5, err_msg=f"{path}: {name}")
    states = [json.loads((run / "checkpoints/step-00000050/trainer_state.json").read_text()) for run in (one, other)]
    for key in ("tokens", "sources", "skipped", "restorations", "callbacks"):
        assert states[0]["trainer"][key] == states[1]["trainer"][key]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    assert run_here(str(folder), {})[0] == 0
    return folder


def test_two_processes_make_the_run_of_one(whole: Path, tmp_path: Path) -> None:
    assert on(2, tmp_path / "run") == [(0, True, True), (0, False, False)]
    require_same_run(whole, tmp_path / "run")
    require_same_histograms(whole, tmp_path / "run")


@pytest.mark.parametrize("stops", [[2, 1], pytest.param([1, 2, 1, 2], marks=pytest.mark.slow)])
def test_a_signal_to_one_process_stops_all_and_any_number_goes_on(
    stops: list[int], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for part, n in enumerate(stops[:-1]):
        at = 13 + 9 * part
        assert [found[0] for found in on(n, folder, disturb="signal", at=at)] == [143] * n
        assert sorted((folder / "checkpoints").glob("step-*"))[-1].name == f"step-{at:08}"
    assert [found[0] for found in on(stops[-1], folder)] == [0] * stops[-1]
    require_same_metrics(whole, folder)
    assert (folder / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()


@pytest.mark.parametrize(
    ("disturb", "kind", "sentence"),
    [
        ("data", "WorkError", "the disk is gone"),
        ("config", "RequestError", "optimizer.lr is 0.002 on process 1 and 0.001 on process 0"),
    ],
)
def test_what_one_process_cannot_do_ends_all_with_its_sentence(
    disturb: str, kind: str, sentence: str, tmp_path: Path
) -> None:
    found = on(2, tmp_path / "run", disturb=disturb)
    assert [found[0][0], found[1][0]] == [kind, kind]
    assert sentence in found[0][1] and found[0][1] == found[1][1]


def test_another_micro_batch_goes_on_where_only_sums_change(tmp_path: Path) -> None:
    changes = {"training__max_steps": 4, "callbacks": {}}
    on(1, tmp_path / "run", changes, disturb="signal", at=2)
    console = kit().Console()
    kit().train_quietly(settings(**changes, training__micro_batch=2), tmp_path / "run", console=console)
    assert "training.micro_batch was 1 and is now 2, which changes no more than the order of sums" in console.lines
    averaged = changes | {"model__moe": {"n_expert": 4, "n_expert_used": 2}}
    on(1, tmp_path / "moe", averaged, disturb="signal", at=2)
    with pytest.raises(RequestError, match="micro_batch was 1 and is now 2"):
        kit().train_quietly(settings(**averaged, training__micro_batch=2), tmp_path / "moe")


@pytest.mark.parametrize("streams", [False, True])
def test_shares_of_a_step_are_its_micro_batches(streams: bool) -> None:
    """Every row is made from its number alone, or, in a stream, all of them by everybody, in their order."""
    config = settings(training__micro_batch=2, training__batch_tokens=12 * 16)
    made: list[list[int]] = []

    class Rows:
        source_names = ("even", "odd")
        stream = SimpleNamespace(snapshot=lambda: "behind them") if streams else None

        def row(self, index: int) -> dict[str, Any]:
            made[-1].append(index)
            targets = np.arange(16) if index != 5 else np.full(16, IGNORED)
            return {"ids": np.full(16, index), "targets": targets}

        def row_source(self, index: int) -> int:
            return index % 2

    def share(*which: int) -> Any:
        made.append([])
        return step_batch(Rows(), list(range(12)), config, 16, which)  # type: ignore[arg-type]

    whole, shares = share(0, 1), [share(i, 3) for i in range(3)]
    assert [list(one.numbers) for one in shares] == [[0, 3], [1, 4], [2, 5]]
    for one in shares:
        assert one.rows == whole.rows and one.stream == whole.stream
        for number, batch in zip(one.numbers, one.micro_batches, strict=True):
            assert batch["ids"].equal(whole.micro_batches[number]["ids"])
    assert sum(one.valid for one in shares) == whole.valid == 11 * 16
    assert [sum(n) for n in zip(*(one.source_tokens for one in shares), strict=True)] == whole.source_tokens
    assert made[1:] == ([list(range(12))] * 3 if streams else [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]])


LAYOUTS = ["fsdp: 2", "fsdp: 2, dp: 2", "tp: 2", "pp: 2", "cp: 2", "tp: 2, fsdp: 2", "pp: 2, dp: 2"]
WATCHED = {"callbacks__monitor": {"every_steps": 10}, "model__n_layer": 2}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_makes_the_run_of_one(layout: str, whole: Path, tmp_path: Path) -> None:
    mesh = {key: int(size) for key, size in (pair.split(": ") for pair in layout.split(", "))}
    n = int(np.prod(list(mesh.values())))
    on(1, tmp_path / "one", WATCHED)
    found = on(n, tmp_path / "run", WATCHED | {"distributed": {"mesh": mesh}})
    assert [one[0] for one in found] == [0] * n, found
    require_same_metrics(tmp_path / "one", tmp_path / "run")
    require_same_histograms(tmp_path / "one", tmp_path / "run")
    assert (tmp_path / "one" / "samples.jsonl").read_text() == (tmp_path / "run" / "samples.jsonl").read_text()
    a, b = (load_file(run / "model" / "model.safetensors") for run in (tmp_path / "one", tmp_path / "run"))
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=2e-5, err_msg=name)


KINDS: dict[str, dict[str, Any]] = {
    "streamed": {"data": {"train": {"text": DOCUMENTS}, "streaming": True, "val": {"text": "bead cab " * 40},
                          "shuffle_buffer": 7, "document_mask": True}},
    "experts": {"model__moe": {"n_expert": 4, "n_expert_used": 2}, "evaluation__max_tokens": 64},
    "biased": {"model__moe": {"n_expert": 4, "n_expert_used": 2, "balance": "bias", "balance_rate": 0.01}},
    "averaged": {"optimizer__ema_decay": 0.9, "optimizer__name": "muon"},
    "overfit": {"training__overfit_batches": 2},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_on_two_processes(kind: str, tmp_path: Path) -> None:
    for n in (1, 2):
        assert (found := on(n, tmp_path / str(n), KINDS[kind]))[0][0] == 0, found
    require_same_run(tmp_path / "1", tmp_path / "2")


@pytest.mark.slow
def test_dropout_is_that_of_the_row_whoever_trains_on_it(tmp_path: Path) -> None:
    for n in (1, 2):
        assert on(n, tmp_path / str(n), {"model__dropout": 0.2})[0][0] == 0
    require_same_run(tmp_path / "1", tmp_path / "2")


@pytest.mark.slow
def test_a_callback_of_one_process_ends_the_run_of_all(tmp_path: Path) -> None:
    assert [found[0] for found in on(2, tmp_path / "run", disturb="stop", at=7)] == [0, 0]
    assert kit().metrics(tmp_path / "run")[-1]["step"] == 7 and (tmp_path / "run" / "model").exists()
