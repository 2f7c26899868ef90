"""The small parts of training: background writing, the log file, seeds, telemetry, signals, the dry run."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from minigpt.config import RequestError, WorkError
from minigpt.training import JsonlLogger, StopRequested, StopSignals, dry_run
from minigpt.training.seeds import derived_seed, seed_step
from minigpt.training.snapshots import BackgroundWriter, all_finite, copy_to_cpu
from minigpt.training.telemetry import Speedometer, peak_memory_mb


def test_a_background_job_runs_beside_and_one_at_a_time():
    writer, go, done = BackgroundWriter(True), threading.Event(), []
    writer.submit(lambda: (go.wait(5), done.append(1)))
    assert done == []
    go.set()
    writer.submit(lambda: done.append(2))
    writer.wait()
    assert done == [1, 2]


def test_its_error_comes_up_once_with_its_own_message():
    writer = BackgroundWriter(True)
    writer.submit(lambda: 1 / 0)
    writer.join()
    with pytest.raises(ZeroDivisionError):
        writer.check()
    writer.check()
    writer.submit(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writer.wait()


def test_in_the_foreground_it_runs_at_once():
    writer, done = BackgroundWriter(False), []
    writer.submit(lambda: done.append(1))
    assert done == [1]
    with pytest.raises(ZeroDivisionError):
        writer.submit(lambda: 1 / 0)


def test_copies_are_not_changed_by_later_steps():
    weights = {"a": torch.ones(3)}
    copies = copy_to_cpu(weights)
    weights["a"].add_(1)
    assert copies["a"].tolist() == [1, 1, 1]
    assert all_finite({"a": torch.ones(2), "n": torch.tensor(3)})
    assert not all_finite({"a": torch.ones(2), "b": torch.tensor([1.0, math.nan])})


def test_a_log_is_lines_of_json_even_for_numbers_that_json_lacks(tmp_path):
    log = JsonlLogger(tmp_path / "log.jsonl")
    log.log({"step": 1, "a": 0.1, "b": math.nan, "c": -math.inf, "d": "\u00e9"})
    position = log.position
    assert json.loads((tmp_path / "log.jsonl").read_text("utf-8")) == {
        "step": 1,
        "a": 0.1,
        "b": "nan",
        "c": "-inf",
        "d": "\u00e9",
    }
    log.log({"step": 2})
    log.truncate(position)
    log.log({"step": 3})
    log.sync()
    log.close()
    again = JsonlLogger(tmp_path / "log.jsonl")
    assert again.position == os.path.getsize(tmp_path / "log.jsonl")
    again.truncate(10**6)
    again.log({"step": 4})
    again.close()
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text("utf-8").splitlines()]
    assert steps == [1, 3, 4]


class FullDisk:
    """Takes ten bytes, then no more."""

    def __init__(self):
        self.taken = b""

    def write(self, data):
        if len(self.taken) == 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.taken += data[: 10 - len(self.taken)]
        return len(self.taken)


def test_a_log_on_a_full_disk_is_a_sentence(tmp_path):
    log = JsonlLogger(tmp_path / "log.jsonl")
    log._file.close()
    log._file = FullDisk()
    with pytest.raises(WorkError, match=r"could not write .*log\.jsonl: No space left on device"):
        log.log({"step": 1})
    assert log._file.taken == b'{"step": 1'


def test_seeds_are_the_same_everywhere_and_all_different():
    """The number is BLAKE2b's, so it can be computed by hand with any implementation."""
    import hashlib

    by_hand = int.from_bytes(hashlib.blake2b(b"step/1/2/0/0", digest_size=8).digest(), "little") >> 1
    assert derived_seed("step", 1, 2, 0, 0) == by_hand
    numbers = {
        derived_seed("step", seed, step, micro, 0) for seed in range(5) for step in range(50) for micro in range(4)
    }
    assert len(numbers) == 1000 and all(0 <= number < 2**63 for number in numbers)
    drawn = []
    for step in (1, 2, 1):
        seed_step(7, step, 0)
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[2] != drawn[1]


def test_speed_and_percentiles():
    meter = Speedometer(100.0, lambda: 1e6)
    assert meter.report() == {}
    for milliseconds in range(1, 11):
        meter.step(milliseconds / 1000, wait_ms=2.0, tokens=11)
    report = meter.report()
    assert report["perf/tokens_per_second"] == pytest.approx(110 / 0.055)
    assert report["perf/step_ms"] == pytest.approx(5.5) and report["perf/step_ms_p90"] == pytest.approx(10, abs=1)
    assert report["perf/data_wait_ms"] == 2.0
    assert report["perf/mfu"] == pytest.approx(110 / 0.055 * 100 / 1e6)
    assert meter.report() == {} and "perf/mfu" not in Speedometer(1.0, lambda: None).report()


def test_a_peak_that_was_measured_too_low_is_measured_again():
    peaks = iter([50.0, 400.0])
    meter = Speedometer(1.0, lambda: next(peaks))
    meter.step(seconds=1.0, wait_ms=0.0, tokens=100)
    assert meter.report()["perf/mfu"] == pytest.approx(100 / 400)


def test_memory_is_that_of_a_process_with_pytorch():
    assert peak_memory_mb(torch.device("cpu")) > 10


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_a_processs_peak_is_its_own():
    """Not that of the program that started it, which getrusage passes on."""
    code = "from minigpt.training.telemetry import peak_memory_mb, torch; print(peak_memory_mb(torch.device('cpu')))"
    big = f"import os, sys; held = bytearray(2**30); os.execv(sys.executable, [sys.executable, '-c', {code!r}])"
    peaks = [
        float(subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout)
        for text in (code, big)
    ]
    assert 50 < peaks[0] < 900 and peaks[1] == pytest.approx(peaks[0], rel=0.1)


def test_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        signals.check()
        assert signals.exit_status == 0
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StopRequested):
            signals.check()
        assert signals.exit_status == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_another_thread_there_are_no_handlers_but_requests():
    found = []

    def work():
        with StopSignals() as signals:
            signals.request(signal.SIGINT)
            found.append(signals.exit_status)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [130]


def test_a_dry_run_writes_no_run(tmp_path, kit, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = dry_run(kit.config())
    assert list(tmp_path.iterdir()) == []
    kit.train(kit.config(), tmp_path / "run")
    assert plan.config_yaml in (tmp_path / "run" / "config.yaml").read_text()
    assert plan.steps == 6 and plan.tokens == 6 * 64 and plan.seconds > 0 and plan.memory_bytes > 16 * plan.parameters
    from minigpt.storage import load_state

    assert plan.parameters == sum(t.numel() for t in load_state(tmp_path / "run" / "model").values())
    assert "row 0, 16 targets: " in plan.batch_text and json.dumps(plan.as_dict())
    with pytest.raises(RequestError):
        dry_run(kit.config(data__train=str(tmp_path / "missing.txt")))


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        ({"max_tokens": 64 * 3}, 3),
        ({"max_tokens": 64 * 3 + 1}, 4),
        ({"epochs": 1.0}, math.ceil(84 / 4)),  # 1350 training tokens make (1350 - 16) // 16 + ... = 84 windows or fewer
        ({"epochs": 0.01}, 1),
    ],
)
def test_the_length_of_a_run(kit, training, steps):
    settings = kit.config(training={"batch_tokens": 64, "micro_batch": 2} | training)
    assert abs(dry_run(settings).steps - steps) <= ("epochs" in training)
