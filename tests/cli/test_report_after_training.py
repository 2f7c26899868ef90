"""`minigpt train` leaves a report behind, however it ends, and the report never changes how it ended."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    from minigpt.training import trainer

    monkeypatch.setattr(trainer, "peak_flops", lambda *arguments: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    keys = (
        "model.n_layer=1", "model.n_head=2", "model.n_embd=32", "model.context_length=16", "tokenizer.kind=char",
        "data.train=text.txt", "training.max_steps=6", "training.batch_tokens=32", "training.micro_batch=2",
        "evaluation.every_steps=3", "evaluation.max_tokens=64", "loggers.every_steps=1", "run.threads=1",
    )  # fmt: skip
    (tmp_path / "tiny.yaml").write_text("{}\n")
    return ("train", "tiny.yaml", *keys, "--run-dir", "run", "--quiet")


def test_a_finished_run(run: Callable, command: tuple[str, ...]) -> None:
    found = run(*command)
    assert found.status == 0 and "report: run/report.html\n" in found.err
    page = Path("run/report.html").read_text()
    assert "Finished" in page and 'id="loss-step"' in page and "Tokens a second" in page
    [session] = [json.loads(line) for line in Path("run/environment.jsonl").read_text().splitlines()]
    assert (session["step"], session["max_steps"]) == (0, 6)


@pytest.fixture
def stop_at_4(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and every run gets SIGTERM after its fourth step."""
    from minigpt.training import Trainer

    after = Trainer._after_step

    def stopping(self: Trainer, step: int) -> None:
        after(self, step)
        if step == 4:
            self.signals.request(signal.SIGTERM)

    return lambda: monkeypatch.setattr(Trainer, "_after_step", stopping)


def test_a_run_that_a_signal_stops_and_that_goes_on(
    run: Callable, command: tuple[str, ...], stop_at_4: Callable[[], None]
) -> None:
    stop_at_4()
    found = run(*command)
    assert found.status == 143 and "report: run/report.html\n" in found.err
    assert "Not finished: at step 4 of 6" in Path("run/report.html").read_text()
    assert run(*command).status == 0  # the fourth step is behind it
    page = Path("run/report.html").read_text()
    assert "Finished" in page and "in 2 sessions (1 resumed)" in page and "from step 4" in page


@pytest.mark.parametrize("stopped", [False, True])
def test_a_report_that_fails(
    run: Callable,
    command: tuple[str, ...],
    stop_at_4: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    stopped: bool,
) -> None:
    def broken(*arguments: object) -> str:
        raise MemoryError("not enough")

    monkeypatch.setattr("minigpt.reporting.write.render", broken)
    if stopped:
        stop_at_4()
    found = run(*command)
    assert found.status == (143 if stopped else 0)
    assert "the report of run could not be written: not enough\n" in found.err and "Traceback" not in found.err
    assert not Path("run/report.html").exists() and Path("run/model").exists() is not stopped
