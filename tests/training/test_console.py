"""What people see while training: figures on a terminal and in a log file, at any width, without an error."""

import io
import math

import pytest

from minigpt.training import console as module
from minigpt.training.console import PlainConsole, QuietConsole, RichConsole, amount, duration, make_console

TRAIN = {"step": 20, "tokens": 1280, "time": 1.5, "train/loss": 2.34567, "train/lr": 1e-3, "train/grad_norm": 0.9,
         "train/skipped": 0, "perf/tokens_per_second": 28_123.0, "perf/mfu": 0.3, "memory/peak_mb": 400.0}  # fmt: skip
EVALUATION = {"step": 20, "tokens": 1280, "time": 1.6, "val/loss": 2.25, "val/bpb": 3.246}


def feed(console):
    console.start(0, 100)
    console.message("a line [for] people")
    console.log(TRAIN)
    console.log(TRAIN | {"step": 40, "train/loss": math.nan, "train/grad_norm": math.inf, "train/skipped": 2})
    console.log(EVALUATION)
    console.log(EVALUATION | {"val/loss": math.nan})
    console.log({"step": 41, "monitor/weight_norm/embed": 3.0})
    console.sample(20, "Once [red]upon[/] a time\n\x1b and \U0001f600")
    console.close()
    console.close()


def test_plain_lines():
    stream = io.StringIO()
    feed(PlainConsole(stream))
    lines = stream.getvalue().splitlines()
    assert "a line [for] people" in lines and "\x1b[" not in stream.getvalue()
    assert any(line.startswith("step 20/100  loss 2.3457  lr 1.00e-03  28.1k tok/s  eta ") for line in lines)
    assert "step 20/100  val loss 2.2500  bpb 3.2460" in lines
    assert any("step 20 sample: Once [red]upon[/] a time" in line for line in lines)


def test_plain_lines_come_every_ten_seconds(monkeypatch):
    now = {"t": 0.0}
    monkeypatch.setattr(module.time, "monotonic", lambda: now["t"])
    stream = io.StringIO()
    console = PlainConsole(stream)
    console.start(0, 100)
    for step in range(1, 61):
        now["t"] = step * 0.5
        console.log(TRAIN | {"step": step})
    steps = [int(line.split("/")[0].removeprefix("step ")) for line in stream.getvalue().splitlines()]
    assert steps == [1, 21, 41]


def test_the_remaining_time_follows_from_the_steps_of_this_session(monkeypatch):
    """Resumed at step 50 of 100: ten steps in 20 seconds leave 80 seconds for the other forty."""
    now = {"t": 0.0}
    monkeypatch.setattr(module.time, "monotonic", lambda: now["t"])
    stream = io.StringIO()
    console = PlainConsole(stream)
    console.start(50, 100)
    now["t"] = 20.0
    console.log(TRAIN | {"step": 60})
    assert stream.getvalue().endswith("eta 1:20\n")


@pytest.mark.parametrize("width", [10, 20, 40, 80, 200])
def test_a_live_bar_at_any_width(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    console = RichConsole(stream)
    feed(console)
    shown = stream.getvalue().replace("\n", "")
    assert ["a", "line", "[for]", "people"][-1] in shown and "[red]" in shown  # markup in a sample is text
    if width >= 80:
        assert "validation loss 2.2500  bits per byte 3.246" in stream.getvalue()


def test_the_bar_shows_the_figures_that_fit(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    stream = io.StringIO()
    console = RichConsole(stream)
    console.start(0, 100)
    console.log(TRAIN)
    shown = console._progress.tasks[0].fields["figures"]
    assert shown.startswith("loss 2.3457  lr 1.00e-03  28.1k tok/s  eta ")
    console.close()
    monkeypatch.setenv("COLUMNS", "60")
    narrow = RichConsole(stream)
    narrow.start(0, 100)
    narrow.log(TRAIN)
    shown = narrow._progress.tasks[0].fields["figures"]
    assert shown.startswith("loss 2.3457") and "eta" in shown and len(shown) <= 30
    narrow.close()


def test_quiet_says_only_messages(capsys):
    feed(QuietConsole())
    assert capsys.readouterr() == ("", "a line [for] people\n")


def test_auto_is_plain_where_nobody_watches(monkeypatch):
    assert isinstance(make_console("auto"), PlainConsole)
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(make_console("auto"), RichConsole)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (950, "950"),
        (999.4, "999"),
        (999.6, "1k"),
        (28_123, "28.1k"),
        (10_700_000, "10.7M"),
        (1e15, "1P"),
        (1e21, "1e+03E"),
    ],
)
def test_amounts(value, text):
    assert amount(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599.6, "1:00:00"), (90061, "25:01:01"), (-5, "0:00")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
