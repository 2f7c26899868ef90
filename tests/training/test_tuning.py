"""Tuning against brute force, and that it leaves nothing behind."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.cli.tune import parse_size
from minigpt.config import RequestError, config_yaml
from minigpt.training.tuning import batch_size, learning_rate
from minigpt.training.tuning.batch_size import Trial, largest_fitting, tune_batch_size
from minigpt.training.tuning.learning_rate import Curve, RangeTest, tune_lr


@given(st.sets(st.integers(1, 4096), min_size=1, max_size=30), st.integers(0, 5000))
def test_doubling_and_bisection_find_the_largest(sizes, limit):
    sizes, asked = sorted(sizes), []

    def fits(index):
        asked.append(index)
        return sizes[index] <= limit

    fitting = [index for index, size in enumerate(sizes) if size <= limit]
    assert largest_fitting(sizes, fits) == max(fitting, default=None)
    assert len(asked) == len(set(asked))
    assert not asked or max(asked) <= (fitting[-1] if fitting else 0) + len(sizes) // 2 + 1


def tuned_by(monkeypatch, kit, takes, limit, **changes):
    """The outcome where a micro-batch takes takes(rows) bytes."""

    class Bench:
        def __init__(self, *arguments):
            pass

        def prepare(self):
            pass

        def run(self, rows):
            return Trial(rows, takes(rows), 1000.0 / abs(rows - 5), takes(rows) <= limit, 1.0)

    monkeypatch.setattr(batch_size, "_Bench", Bench)
    return tune_batch_size(kit.config(training__batch_tokens=16 * 24, training__micro_batch="auto", **changes), limit)


def test_the_batch_stays_the_same(kit, monkeypatch):
    tuned = tuned_by(monkeypatch, kit, lambda rows: 100 * rows, 900)
    assert tuned.best.rows == 8 and [trial.rows for trial in tuned.trials] == [1, 2, 4, 8, 12, 24]
    assert tuned.lines[0].startswith("set training.micro_batch=8: the largest that fits 3 times a step")
    assert "a step stays 384 tokens" in tuned.lines[0]
    assert tuned.lines[1] == "training.micro_batch=4 was 200% faster"
    values = tuned.as_dict()
    assert values["micro_batch"] * values["micro_batches"] * 16 == values["batch_tokens"] == 384


def test_nothing_fits(kit, monkeypatch):
    tuned = tuned_by(monkeypatch, kit, lambda rows: 100 * rows, 99)
    assert tuned.best is None and "not even one row" in tuned.lines[0] and tuned.as_dict()["micro_batch"] is None


def test_a_mesh_is_not_tuned(kit):
    with pytest.raises(RequestError, match="one process"):
        tune_batch_size(kit.config(distributed={"mesh": {"fsdp": 2}}), 1e9)


def test_sizes():
    assert parse_size("2GB") == 2e9 and parse_size("1.5 GiB") == 1.5 * 2**30
    assert parse_size("500m") == 5e8 and parse_size("4096") == 4096
    for wrong in ("", "GB", "two", "2XB", "-1GB", "0GB"):
        with pytest.raises(RequestError, match="--memory"):
            parse_size(wrong)


def test_the_lowest_loss_of_a_parabola():
    rates = [10 ** (-5 + i / 20) for i in range(100)]
    curve = Curve(1, rates, [(math.log10(rate) + 2) ** 2 for rate in rates])
    found = RangeTest([curve])
    assert found.turned and 1e-2 < found.lowest < 4e-2  # the mean of what went before comes after it
    assert found.suggestion == float(f"{found.lowest / 10:.2g}")
    assert found.lines()[-1] == f"set optimizer.lr={found.suggestion:g}"
    falling = RangeTest([Curve(1, rates[:40], [float(-i) for i in range(40)])])
    assert not falling.turned and any("raise --to" in line for line in falling.lines())


def test_a_range_test_ends_when_the_loss_rises(kit, tmp_path):
    found = tune_lr(kit.config(model__dropout=0.0, data__train={"text": "abc def\n" * 200}), 1e-4, 1e3, steps=60)
    curve = found.curves[0]
    assert found.turned and len(curve.rates) < 60 and 1e-3 < found.lowest < 10
    assert curve.rates[0] == 1e-4 and all(math.isfinite(loss) for loss in curve.losses)
    pytest.importorskip("matplotlib")
    found.draw(tmp_path / "lr.png")
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")


def test_a_range_that_begins_too_high(kit, monkeypatch):
    monkeypatch.setattr(learning_rate, "_run", lambda config, folder, rates: Curve(config.run.seed, [1.0], [math.nan]))
    assert not tune_lr(kit.config()).turned


# ---- real trials -----------------------------------------------------------------------------------------------------


def processes_of(marker):
    """Command lines of processes that mention `marker`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if marker in command and int(folder.name) != os.getpid():
            found.append(command)
    return found


@pytest.mark.slow
def test_the_true_maximum_under_a_limit(kit, tmp_path):
    config = kit.config(
        model__n_layer=2, model__n_embd=128, model__context_length=256, model__dropout=0.0,
        training__batch_tokens=256 * 64, training__micro_batch="auto", training__precision="fp32",
        data__train={"text": kit.text(20000)},
    )  # fmt: skip
    everything = {}
    for rows in (1, 2, 4, 8, 16, 32, 64):
        bench = batch_size._Bench(config, batch_size.pick_device("cpu"), 1e12, tmp_path / f"brute-{rows}")
        bench.folder.mkdir()
        everything[rows] = bench.run(rows).peak
    peaks = list(everything.values())
    assert peaks == sorted(peaks)
    limit = (everything[8] + everything[16]) / 2
    tuned = tune_batch_size(config, limit)
    assert tuned.best.rows == max(rows for rows, peak in everything.items() if peak <= limit) == 8
    assert not processes_of("minigpt.training.tuning.probe")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_when_it_is_stopped(kit, tmp_path, number):
    file = tmp_path / "config.yaml"
    file.write_text(config_yaml(kit.config(training__micro_batch="auto")))
    command = [sys.executable, "-m", "minigpt", "tune", "batch-size", str(file), "--memory", "8GB"]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env=os.environ | {"TMPDIR": str(scratch)},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not processes_of("minigpt.training.tuning.probe"):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, number)
    assert process.wait(60) == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    while processes_of("minigpt.training.tuning.probe"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if number != signal.SIGKILL:
        assert not list(scratch.glob("minigpt-tune-*"))


@pytest.mark.slow
def test_the_command_prints_one_object(kit, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(config_yaml(kit.config(training__micro_batch="auto")))
    done = subprocess.run(
        [sys.executable, "-m", "minigpt", "tune", "batch-size", str(file), "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["micro_batch"] == 4
