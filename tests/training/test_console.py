"""What people see while training: lines in a log, the layout of the panel at any size, and what both are made of."""

import io
import json
import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from minigpt.training import console as module
from minigpt.training.console import LiveConsole, PlainConsole, QuietConsole, amount, duration, make_console, plain
from minigpt.training.console.curve import MOST, Curve, chart, limits
from minigpt.training.console.figures import memory
from minigpt.training.console.panel import Panel
from minigpt.training.console.safe_text import printable, tidy
from minigpt.training.console.state import State
from minigpt.training.loggers import RunInfo

TRAIN = {"step": 20, "tokens": 1280, "time": 1.5, "train/loss": 2.34567, "train/lr": 1e-3, "train/grad_norm": 0.9,
         "train/skipped": 0, "perf/tokens_per_second": 28_123.0, "perf/step_ms": 20.0, "perf/data_wait_ms": 0.1,
         "perf/mfu": 0.3, "memory/peak_mb": 400.0}  # fmt: skip
EVALUATION = {"step": 20, "tokens": 1280, "time": 1.6, "val/loss": 2.25, "val/bpb": 3.246}
HOSTILE = "Once [red]upon[/] a time\n\x1b[2J\x1b]0;title\x07 \u202eback\u202c 日本語 \U0001f600 \ud800 \x9b31m\r\x00end"


def info(folder, step=0, max_steps=100, name="my-run", every=None):
    return RunInfo(folder, {"evaluation": {"every_steps": every}}, name, step, max_steps)


def feed(console, folder):
    console.progress("tokenize", 1000, None, "characters")
    console.start(info(folder))
    console.message("a line [for] people")
    console.log(TRAIN)
    console.log(TRAIN | {"step": 40, "train/loss": math.nan, "train/grad_norm": math.inf, "train/skipped": 2})
    console.log(EVALUATION)
    console.log(EVALUATION | {"val/loss": math.nan})
    console.log({"step": 41, "monitor/weight_norm/embed": 3.0})
    console.sample(20, HOSTILE)
    console.close()
    console.close()


@pytest.fixture
def clock(monkeypatch):
    """Time as the plain console sees it, in seconds."""
    now = {"t": 0.0}
    monkeypatch.setattr(plain.time, "monotonic", lambda: now["t"])
    return now


# ---- lines ---------------------------------------------------------------------------------------------------------


def test_plain_lines(tmp_path):
    stream = io.StringIO()
    feed(PlainConsole(stream), tmp_path)
    text = stream.getvalue()
    lines = text.splitlines()
    assert not [char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs") and char != "\n"]
    assert "a line [for] people" in lines
    assert any(
        line.startswith("step 20/100  loss 2.3457  lr 1.00e-03  28.1k tok/s  MFU 30.0%  grad norm 0.9  400 MB  eta")
        for line in lines
    )
    assert "step 20/100  val loss 2.2500  bits/byte 3.2460  best" in lines
    at = lines.index("step 20/100  sample:")
    assert lines[at + 1] == "    Once [red]upon[/] a time" and lines[at + 2].startswith("    \ufffd[2J\ufffd]0;title")


def test_plain_lines_come_every_ten_seconds_and_every_minute_in_a_long_run(tmp_path, clock):
    stream = io.StringIO()
    console = PlainConsole(stream)
    console.start(info(tmp_path, max_steps=100_000))
    for step in range(1, 61):
        clock["t"] = step * 0.5
        console.log(TRAIN | {"step": step, "time": clock["t"]})
    steps = [int(line.split("/")[0].removeprefix("step ")) for line in stream.getvalue().splitlines()]
    assert steps == [1, 21, 41]
    stream.seek(0), stream.truncate()
    for step in range(20_000, 20_120):  # two minutes of the third hour
        clock["t"] = float(step - 12_000)
        console.log(TRAIN | {"step": step, "time": clock["t"]})
    assert len(stream.getvalue().splitlines()) == 2


def test_evaluations_say_how_the_loss_changed_and_which_is_the_best(tmp_path):
    stream = io.StringIO()
    console = PlainConsole(stream)
    console.start(info(tmp_path))
    for step, loss in ((10, 3.0), (20, 2.5), (30, 2.75)):
        console.log({"step": step, "val/loss": loss})
    assert stream.getvalue().splitlines() == [
        "step 10/100  val loss 3.0000  best",
        "step 20/100  val loss 2.5000  change -0.5000  best",
        "step 30/100  val loss 2.7500  change +0.2500",
    ]


def test_the_remaining_time_follows_from_the_steps_of_this_session(tmp_path, clock):
    """Resumed at step 50 of 100: ten steps in 20 seconds leave 80 seconds for the other forty."""
    stream = io.StringIO()
    console = PlainConsole(stream)
    console.start(info(tmp_path, step=50))
    clock["t"] = 20.0
    console.log(TRAIN | {"step": 60})
    assert stream.getvalue().endswith("eta 1:20\n")


def test_the_remaining_time_leaves_out_the_first_step_which_compiles(tmp_path, clock):
    state = State(info(tmp_path), 0.0)
    state.log(TRAIN | {"step": 1}, 60.0)
    assert state.remaining(60.0) is None
    state.log(TRAIN | {"step": 11}, 65.0)
    assert state.remaining(65.0) == pytest.approx(0.5 * 89)
    assert state.remaining(70.0) == pytest.approx(0.5 * 89 - 5)  # and time passes between two lines of metrics


def test_only_a_notable_wait_for_data_is_mentioned(tmp_path):
    state = State(info(tmp_path), 0.0)
    state.log(TRAIN, 1.0)
    assert not [figure for figure, _ in state.figures() if "wait" in figure]
    state.log(TRAIN | {"perf/data_wait_ms": 5.0}, 2.0)
    assert ("data wait 25%", "yellow") in state.figures()


def test_quiet_says_only_messages(tmp_path, capsys):
    feed(QuietConsole(), tmp_path)
    assert capsys.readouterr() == ("", "a line [for] people\n")


def test_a_reader_that_went_away_stops_nobody(tmp_path):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    feed(PlainConsole(Gone()), tmp_path)
    feed(QuietConsole(Gone()), tmp_path)
    feed(LiveConsole(Gone()), tmp_path)


def test_which_console_auto_is(monkeypatch, capsys):
    class Screen(io.StringIO):
        encoding = "utf-8"

        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(make_console("auto"), PlainConsole)  # nobody watches
    assert isinstance(make_console("rich"), PlainConsole)
    assert "loggers.console=rich needs a terminal" in capsys.readouterr().err
    monkeypatch.setattr(module.sys, "stderr", Screen())
    assert isinstance(make_console("auto"), LiveConsole)
    assert isinstance(make_console("rich"), LiveConsole)
    assert isinstance(make_console("plain"), PlainConsole)
    assert isinstance(make_console("quiet"), QuietConsole)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_console("auto"), PlainConsole)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(Screen, "encoding", "latin-1")
    assert isinstance(make_console("auto"), PlainConsole)


# ---- going on ------------------------------------------------------------------------------------------------------


def test_a_resumed_run_shows_what_was_before(tmp_path):
    """Evaluations, curve and sample come from the run's own files; a torn line and numbers that JSON lacks are met."""
    lines = [
        {"step": 1, "time": 0.1, "train/loss": 4.0, "train/grad_norm": "inf"},
        {"step": 5, "time": 0.5, "train/loss": "nan", "perf/tokens_per_second": 1.0},
        {"step": 10, "time": 1.0, "val/loss": 2.0},
        {"step": 20, "time": 2.0, "val/loss": 3.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 21, "ti')
    (tmp_path / "samples.jsonl").write_text('{"step": 20, "text": "1"}\n')
    state = State(info(tmp_path, step=20), 0.0)
    assert [(one.step, one.loss, one.change) for one in state.evaluations] == [(10, 2.0, None), (20, 3.0, 1.0)]
    assert state.best is state.evaluations[0] and state.sample == (20, "1") and state.step == 20
    assert state.loss == pytest.approx(4.0) and state.elapsed(1.5) == pytest.approx(3.5)
    assert "perf/tokens_per_second" not in state.values and state.remaining(1.0) is None
    state.log({"step": 30, "time": 3.0, "val/loss": 2.5}, 1.0)
    assert state.best is state.evaluations[0]

    (tmp_path / "metrics.jsonl").write_text("")  # back to the start after bad steps
    state = State(info(tmp_path, step=0), 2.0)
    assert state.evaluations == [] and state.sample is None and state.curve.columns(10) == []


def test_an_evaluation_that_is_due_is_known_once_there_has_been_one(tmp_path):
    state = State(info(tmp_path, every=10), 0.0)
    state.moved(10, 1.0)
    assert not state.evaluation_due  # perhaps there is no validation text
    state.log({"step": 10, "val/loss": 2.0}, 1.0)
    state.moved(15, 1.0)
    assert not state.evaluation_due
    state.moved(20, 1.0)
    assert state.evaluation_due
    state.log({"step": 20, "val/loss": 2.0}, 1.0)
    assert not state.evaluation_due


# ---- the panel -----------------------------------------------------------------------------------------------------


def busy_state(folder, sample=HOSTILE):
    state = State(info(folder, max_steps=1_000_000, every=100, name="a-run-with-a-name-日本語"), 0.0)
    for step in range(10, 3000, 10):
        state.log(TRAIN | {"step": step, "train/loss": 2 + 3 * math.exp(-step / 300), "train/skipped": 12}, step / 50)
        if step % 100 == 0:
            loss = 2.1 + 3 * math.exp(-step / 300) + (step > 900) * 0.001 * step
            state.log({"step": step, "val/loss": loss, "val/bpb": loss * 1.44}, step / 50)
    state.sample = (2900, sample)
    return state


@pytest.mark.parametrize(
    "sample", [HOSTILE * 20, "\n".join("ab\tcd" for _ in range(80)), "日本語" * 300, "", "x" * 5000]
)
def test_the_panel_fits_every_terminal(tmp_path, sample):
    state = busy_state(tmp_path, sample)
    for width in (1, 2, 5, 10, 20, 39, 40, 60, 80, 109, 110, 111, 120, 200, 250):
        for height in (1, 2, 5, 10, 24, 50, 100):
            console = Console(file=io.StringIO(), width=width, height=height)
            lines = Panel(console).lines(state, 100.0, "evaluating")
            assert 1 <= len(lines) <= max(1, 0.75 * height)
            if width >= 40:
                assert max(cell_len(line.plain) for line in lines) <= width - 1, (width, height)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_what_the_panel_shows(tmp_path, width):
    state = busy_state(tmp_path)
    console = Console(file=io.StringIO(), width=width, height=50)
    text = "\n".join(line.plain for line in Panel(console).lines(state, 60.0))
    assert "a-run-with" in text and "2,990/1,000,000" in text and "0%" in text and ", eta " in text
    assert "loss 2.0" in text and "28.1k tok/s" in text and "skipped 12" in text and "MFU 30.0%" in text
    assert "█" in text and "sample at step 2,900" in text and "Once [red]upon[/] a time" in text
    assert "\x1b" not in text
    best = [line for line in text.splitlines() if "best" in line]
    assert len(best) == 1 and "900" in best[0]  # long ago, and still there
    assert "  2,900" in text and ("bits/byte" in text) == (width >= 80)


def test_the_panel_does_not_become_smaller_before_the_end(tmp_path):
    state = busy_state(tmp_path, "a\nb\nc\nd")
    console = Console(file=io.StringIO(), width=80, height=50)
    panel = Panel(console)
    tall = len(panel.lines(state, 1.0))
    state.sample = (2950, "a")
    assert len(panel.lines(state, 2.0)) == tall
    assert len(panel.lines(state, 3.0, final=True)) == tall - 3


# ---- what it is made of --------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=[])))
def test_printable_text_obeys_nobody(text):
    shown = printable(text)
    shown.encode()  # raises if there are halves of surrogate pairs
    for char in shown:
        assert char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    assert printable(shown) == shown
    if text.isprintable() and text.isascii():
        assert shown == text


def test_living_languages_survive():
    for text in (
        "Tiếng Việt",
        "Tie\u0302\u0301ng Vie\u0323\u0302t",
        "हिन्दी में",
        "日本語",
        "Ελληνικά",
        "été — “ça”",
        "😀",
    ):
        assert printable(text) == text
    heap = "Z" + "\u0301" * 50
    assert len(printable(heap)) == 3
    assert printable("a\r\nb\rc") == "a\nb\ufffdc"


def test_a_sample_loses_its_rows_of_empty_lines():
    assert tidy("\n\na \n\n\n  \n\n  b\nc\n") == "a\n\n  b\nc"


@given(st.lists(st.floats(0, 10), max_size=3000), st.integers(1, 300))
def test_a_curve_keeps_means_in_bounded_memory(values, width):
    curve = Curve()
    for value in values:
        curve.add(value)
        curve.add(math.nan)
    assert len(curve._means) < MOST
    columns = curve.columns(width)
    assert len(columns) == min(width, len(curve._means) + (curve._count > 0))
    if values:
        assert min(values) - 1e-9 <= min(columns) and max(columns) <= max(values) + 1e-9
    complete = curve._each * len(curve._means)
    if complete:
        assert math.fsum(curve._means) / len(curve._means) == pytest.approx(math.fsum(values[:complete]) / complete)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=100), st.integers(1, 5))
def test_a_chart_is_taller_where_the_value_is_higher(values, height):
    rows = chart(values, height)
    assert len(rows) == height and {len(row) for row in rows} == {len(values)}
    tall = [sum(" ▁▂▃▄▅▆▇█".index(row[i]) for row in rows) for i in range(len(values))]
    assert min(tall) >= 1 and max(tall) <= 8 * height
    for (a, x), (b, y) in zip(zip(values, tall, strict=True), zip(values[1:], tall[1:], strict=True), strict=False):
        assert x <= y if a < b else y <= x
    low, high = limits(values)
    assert low == min(values) and high <= max(values)
    if high > low:
        assert tall[values.index(low)] == 1 and max(tall) == 8 * height


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


def test_memory():
    assert (memory(412.3), memory(999.6), memory(12_340)) == ("412 MB", "1 GB", "12.3 GB")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (3599.6, "1:00:00"),
        (90061, "25:01:01"),
        (360_000, "4.17 days"),
        (-5, "0:00"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
