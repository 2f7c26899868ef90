"""The live display on a terminal, an emulated one that knows the few sequences it may use and refuses any other."""

import logging
import math
import os
import re
import signal
import sys
import time

import pytest
from rich.cells import cell_len
from rich.text import Text

from minigpt.training.console import LiveConsole, live
from minigpt.training.console.panel import Panel
from minigpt.training.console.region import Region
from minigpt.training.console.streams import Streams
from minigpt.training.loggers import RunInfo

TOKENS = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|([^\x00-\x1f\x7f-\x9f]|[\n\r])")


class Terminal:
    """A grid of characters with scrollback that breaks its long lines anew when its width changes (as most do)."""

    encoding, errors = "utf-8", "strict"

    def __init__(self, width=80, height=24):
        self.width, self.height = width, height
        self.rows, self.continued = [""], [False]  # everything, scrollback included; whether a row goes on the last
        self.row = self.column = 0
        self.visible, self.wrap, self.style = True, True, ""
        self.styles = set()
        self.writes = 0

    def isatty(self):
        return True

    def flush(self):
        pass

    def write(self, text):
        self.writes += 1
        at = 0
        while at < len(text):
            found = TOKENS.match(text, at)
            assert found, f"the terminal would obey {text[at : at + 20]!r}"
            at = found.end()
            parameters, command, char = found.groups()
            if command:
                self.obey(parameters, command)
            elif char == "\r":
                self.column = 0
            elif char == "\n":
                self.down(False)
            else:
                self.put(char)
        # What a program killed now would leave behind.
        assert self.visible and self.wrap and self.style in ("", "0")
        return len(text)

    def obey(self, parameters, command):
        match command:
            case "A":
                self.row = max(self.top, self.row - int(parameters or 1))
            case "K":
                assert parameters == "" and self.column < self.width, "would erase the last character of a full line"
                self.rows[self.row] = self.cut(self.rows[self.row], self.column)
            case "J":
                assert parameters == ""
                self.rows[self.row] = self.cut(self.rows[self.row], self.column)
                del self.rows[self.row + 1 :], self.continued[self.row + 1 :]
            case "m":
                self.style = parameters
                self.styles |= set(parameters.split(";"))
            case "h" | "l" if parameters == "?25":
                self.visible = command == "h"
            case "h" | "l" if parameters == "?7":
                self.wrap = command == "h"
            case _:
                raise AssertionError(f"unknown sequence {parameters}{command}")

    def put(self, char):
        if self.column + cell_len(char) > self.width:
            if not self.wrap:
                return
            self.down(True)
        line = self.cut(self.rows[self.row], self.column)
        line += " " * (self.column - cell_len(line))
        self.rows[self.row] = line + char + self.rows[self.row][len(line) + 1 :]
        self.column += cell_len(char)

    def down(self, continued):
        self.row, self.column = self.row + 1, 0
        if self.row == len(self.rows):
            self.rows.append("")
            self.continued.append(continued)

    @staticmethod
    def cut(line, cells):
        while cell_len(line) > cells:
            line = line[:-1]
        return line

    @property
    def top(self):
        """Row at the top of the screen."""
        return max(0, len(self.rows) - self.height)

    def resize(self, width, height):
        whole = []
        for row, continued in zip(self.rows, self.continued, strict=True):
            whole[-1:] = [whole[-1] + row] if continued else [*whole[-1:], row]
        self.width, self.height, self.rows, self.continued = width, height, [], []
        for line in whole:
            pieces = [line[i : i + width] for i in range(0, len(line), width)] or [""]
            self.rows += pieces
            self.continued += [i > 0 for i in range(len(pieces))]
        self.row, self.column = len(self.rows) - 1, 0

    @property
    def lines(self):
        return [row.rstrip() for row in self.rows]


@pytest.fixture
def terminal(monkeypatch):
    """An emulated terminal whose size rich sees."""
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    made = Terminal()
    monkeypatch.setattr(os, "get_terminal_size", lambda fd=1: os.terminal_size((made.width, made.height)))
    monkeypatch.setattr(live, "SECONDS", 0.01)
    return made


@pytest.fixture
def plug(terminal, monkeypatch):
    """To be called in the test, since pytest has put its own streams in place: the terminal is stdout and stderr."""

    def put_in_place():
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stderr", terminal)

    return put_in_place


def info(folder, step=0, max_steps=100):
    return RunInfo(folder, {"evaluation": {"every_steps": 10}}, "my-run", step, max_steps)


def wait_for(condition):
    until = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < until, "nothing happened for five seconds"
        time.sleep(0.005)


# ---- the region ----------------------------------------------------------------------------------------------------


def test_frames_replace_each_other_and_what_is_printed_stays_above(terminal):
    region = Region(terminal)
    terminal.write("$ train\n")
    region.print(Text("first"))
    region.paint([Text("one", "bold red"), Text("two")])
    assert terminal.lines == ["$ train", "first", "one", "two", ""]
    region.paint([Text("three")])
    assert terminal.lines == ["$ train", "first", "three", ""]
    region.print(Text("a long message " * 8))
    region.paint([Text("four"), Text("x" * 200), Text("日本語" * 40)])
    assert " ".join(terminal.lines[2:4]) == ("a long message " * 8).rstrip()
    assert terminal.lines[4:] == ["four", "x" * 79, ("日本語" * 40)[:39], ""]
    writes = terminal.writes
    region.paint([Text("four"), Text("x" * 200), Text("日本語" * 40)])
    assert terminal.writes == writes  # nothing has changed
    region.paint([])
    region.print(Text("end"))
    assert terminal.lines[4:] == ["end", ""]


@pytest.mark.parametrize("colours", [True, False])
def test_colours_can_be_turned_off(terminal, monkeypatch, colours):
    if not colours:
        monkeypatch.setenv("NO_COLOR", "1")
    region = Region(terminal)
    region.paint([Text("one", "bold red"), Text("two", "green")])
    assert "1" in terminal.styles and ({"31", "32"} <= terminal.styles) == colours
    assert bool({style for style in terminal.styles if style > "2"}) == colours


def test_frames_leave_no_trace_in_the_scrollback(terminal):
    region = Region(terminal)
    for i in range(200):
        region.paint([Text(f"{i}.{line}") for line in range(20)])
    assert len(terminal.rows) == 21 and terminal.lines[0] == "199.0"


@pytest.mark.parametrize("widths", [(80, 60), (80, 200), (120, 60, 80, 41), (200, 190, 10)])
def test_a_new_width_leaves_one_frame(terminal, widths):
    terminal.resize(widths[0], 60)
    region = Region(terminal)
    region.print(Text("above"))
    for width in widths:
        terminal.resize(width, 60)
        region.paint([Text("─" * (width - 1)), Text("short"), Text("m" * (width // 2))])
    assert terminal.lines == ["above", "─" * (width - 1), "short", "m" * (width // 2), ""]


def test_in_the_background_nothing_is_painted(terminal, monkeypatch):
    region = Region(terminal)
    region.paint([Text("one")])
    monkeypatch.setattr(Region, "_in_foreground", lambda self: False)
    terminal.write("$ bg\n")
    region.paint([Text("two")])
    assert terminal.lines == ["one", "$ bg", ""]
    monkeypatch.undo()
    terminal.write("$ fg\n")
    region.paint([Text("three")])
    assert terminal.lines == ["one", "$ bg", "$ fg", "three", ""]


# ---- other code's output -------------------------------------------------------------------------------------------


def test_what_other_code_prints_goes_above(terminal, plug):
    plug()
    early = logging.StreamHandler(sys.stderr)
    log = logging.getLogger("somebody")
    log.addHandler(early)
    region = Region(terminal)
    streams = Streams(region)
    region.paint([Text("panel")])
    streams.take()
    kept = sys.stderr
    try:
        print("to stdout")
        print("in two ", end="")
        print("pieces", file=sys.stdout)
        log.warning("a line of logging")
        sys.stderr.writelines(["10 %\r", "20 %\r", "30 %\n", "\x1b[31mred\x1b[0m \x1b[2J\x1b]0;title\x07\n"])
        sys.stderr.flush()
        assert sys.stderr.isatty() and sys.stderr.encoding == "utf-8"
        print("no line end", end="", file=sys.stderr)
        assert terminal.lines[-2:] == ["panel", ""]
    finally:
        streams.give_back()
        log.removeHandler(early)
    assert sys.stdout is terminal and sys.stderr is terminal and early.stream is terminal
    above = terminal.lines[:-2]
    assert above[:2] == ["to stdout", "in two pieces"]
    assert "a line of logging" in above and "30 %" in above and not any("10 %" in line for line in above)
    assert any(line.startswith("red") for line in above) and above[-1] == "no line end"
    kept.write("later\n")
    assert terminal.lines[-2:] == ["later", ""]


def test_streams_that_are_no_terminal_are_left_alone(terminal, monkeypatch, tmp_path):
    with open(tmp_path / "out.txt", "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        streams = Streams(Region(terminal))
        streams.take()
        print("into the file")
        streams.give_back()
    assert (tmp_path / "out.txt").read_text() == "into the file\n" and terminal.lines == [""]


# ---- the console ---------------------------------------------------------------------------------------------------


def test_a_run_on_a_terminal(terminal, plug, tmp_path):
    plug()
    console = LiveConsole()
    console.progress("tokenize", 1_000_000, 2_000_000, "characters")
    assert terminal.lines == ["tokenize: 1M of 2M characters", ""]
    console.message("the headline")
    console.start(info(tmp_path))
    for step in range(1, 101):
        console.log({"step": step, "time": step / 10, "train/loss": 3 / step, "train/lr": 1e-3})
        if step % 50 == 0:
            console.log({"step": step, "time": step / 10, "val/loss": 4 / step})
            console.sample(step, f"sample \x1b[2J{step}")
            wait_for(lambda step=step: any(f"sample \ufffd[2J{step}" in line for line in terminal.lines))
            console.message(f"message {step}")
    console.close()
    console.close()
    assert terminal.lines[:4] == ["the headline", "message 50", "message 100", terminal.lines[3]]
    panel = "\n".join(terminal.lines[3:])
    assert panel.startswith("── my-run ──") and "100/100" in panel and "100%" in panel and "eta" not in panel
    assert panel.count("sample at step") == 1 and "sample at step 100" in panel and "best" in panel
    assert "tokenize" not in panel and terminal.lines[-1] == ""
    assert sys.stderr is terminal
    console.message("afterwards")
    assert terminal.lines[-2:] == ["afterwards", ""]


def test_nothing_of_progress_stays_if_the_run_never_starts(terminal, plug):
    plug()
    console = LiveConsole()
    console.progress("download", 1_000_000, None, "bytes")
    assert terminal.lines == ["download: 1M bytes", ""]
    console.close()
    assert terminal.lines == [""]


def test_steps_and_stops_are_seen_between_lines_of_metrics(terminal, plug, tmp_path):
    plug()

    class Run:
        class signals:
            received = None

        step = 0

    console = LiveConsole()
    console.watch(Run)
    console.start(info(tmp_path))
    Run.step = 37
    wait_for(lambda: any(" 37/100" in line for line in terminal.lines))
    Run.signals.received = signal.SIGINT
    wait_for(lambda: "my-run stopping" in terminal.lines[0])
    console.close()
    assert "my-run stopped" in terminal.lines[0]


def test_a_display_that_fails_stops_nobody(terminal, plug, tmp_path, monkeypatch):
    plug()

    def fail(*arguments):
        raise ValueError("no such colour")

    monkeypatch.setattr(Panel, "lines", fail)
    console = LiveConsole()
    console.start(info(tmp_path))
    wait_for(lambda: terminal.writes > 0)
    console.log({"step": 1, "train/loss": math.nan})
    console.close()
    said = " ".join(line for line in terminal.lines if line)
    assert said == "the live display failed (ValueError: no such colour); the run goes on without it"
    assert sys.stderr is terminal


@pytest.mark.skipif(not hasattr(signal, "SIGCONT"), reason="no job control here")
def test_after_a_pause_the_panel_begins_anew(terminal, plug, tmp_path):
    plug()
    before = signal.getsignal(signal.SIGCONT)
    console = LiveConsole()
    console.start(info(tmp_path))
    wait_for(lambda: terminal.writes > 0)
    terminal.write("$ fg\n")
    os.kill(os.getpid(), signal.SIGCONT)
    console.close()
    at = terminal.lines.index("$ fg")
    assert terminal.lines[0].startswith("── my-run") and terminal.lines[at + 1].startswith("── my-run")
    assert signal.getsignal(signal.SIGCONT) is before


def test_a_real_run_is_the_same_with_and_without_a_display(terminal, plug, tmp_path, kit):
    plug()
    settings = kit.config()
    assert kit.train(settings, tmp_path / "quiet").exit_status == 0
    console = LiveConsole()
    assert kit.train(settings, tmp_path / "live", console=console).exit_status == 0
    assert kit.outcome(tmp_path / "live") == kit.outcome(tmp_path / "quiet")
    text = "\n".join(terminal.lines)
    assert "6/6" in text and "sample at step 6" in text and "val loss" in text
    first = kit.metrics(tmp_path / "live")
    best = min(line["val/loss"] for line in first if "val/loss" in line)
    assert any(f"{best:.4f}" in line and "best" in line for line in terminal.lines)
