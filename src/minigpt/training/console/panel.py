"""How a run looks on a terminal: a few lines that fit its width and height.

-- shakespeare-char ---------------------------------------------------------------- 0:43, eta 1:12 --
 1,240/2,000  ===============================================================--------------------  62%
 loss 1.8423  lr 9.81e-04  28.1k tok/s  MFU 31.0%  grad norm 0.82  412 MB
   2.613  (the curve)
   1.842
     step  val loss   change  bits/byte
    1,000    1.8420  -0.0891     2.6571  best
 sample at step 1,000
 ...
"""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from minigpt.training.console.curve import chart, limits
from minigpt.training.console.figures import duration
from minigpt.training.console.safe_text import printable, tidy
from minigpt.training.console.state import Evaluation, State

MOST_LINES = 24
SHARE_OF_ROWS = 0.75  # the rest is for messages
WIDE = 110  # columns from which the sample stands beside the curve instead of below it
LEAST_LEFT, MOST_LEFT = 56, 72  # columns of what it stands beside
NARROWEST = 20  # columns that curves, tables and samples need
ROOMY = 100  # columns from which figures stand further apart
MOST_SAMPLE = 100  # columns: longer lines are hard to read
CHART = 4  # lines
MOST_SOURCE_LINES = 3
MOST_EVALUATIONS = 8


class Panel:
    """Lays out a state on a terminal of the size of `console`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._wrapped: tuple[object, list[Text]] = (None, [])
        self._tallest: tuple[object, int] = (None, 0)

    def lines(self, state: State, now: float, activity: str = "", final: bool = False) -> list[Text]:
        """The lines, none longer than the terminal is wide; no more of them than leave room for messages.

        Not fewer than before, until the terminal's size changes or the run ends: the panel does not jump.
        """
        lines = self._lay_out(state, now, activity, final)
        if final:
            return lines
        size = self.console.size
        tallest = max(len(lines), self._tallest[1] if self._tallest[0] == size else 0)
        self._tallest = size, tallest
        return lines + [Text()] * (tallest - len(lines))

    def _lay_out(self, state: State, now: float, activity: str, final: bool) -> list[Text]:
        width = self.console.width - 1
        height = max(1, min(int(SHARE_OF_ROWS * self.console.height), MOST_LINES))
        head = [title(state, now, width, activity, final), bar(state, width)]
        head += flowing(state.figures(), width, 2 if height > 12 else 1)
        if sources := state.sources():
            head += flowing(sources, width, MOST_SOURCE_LINES if height > 12 else 1)
        room = height - len(head)
        if width >= WIDE:
            split = max(LEAST_LEFT, min(MOST_LEFT, width - MOST_SAMPLE))
            left = [Text(), *curve(state, split - 2, CHART)]
            left += evaluations(state, split, room - len(left))
            return (head + beside(left, self.sample(state, width - split, room), split))[:height]
        below = curve(state, width, min(CHART, room // 4))
        below += evaluations(state, width, (room - len(below)) // 2)
        below += self.sample(state, width, room - len(below))
        return (head + below)[:height]

    def sample(self, state: State, width: int, room: int) -> list[Text]:
        """The newest sample, as much as there is room for."""
        if state.sample is None or room < 3 or width < NARROWEST:
            return []
        step, text = state.sample
        lines = self._wrap(text, min(width - 1, MOST_SAMPLE))
        shown = [Text(" ") + line for line in lines[: room - 2]]
        if len(lines) > len(shown):
            shown[-1].truncate(max(0, width - 2))
            shown[-1].append(" …", "dim")
        return [Text(), Text().append(f" sample at step {step:,}", "dim"), *shown]

    def _wrap(self, text: str, width: int) -> list[Text]:
        """The sample in lines; done once for each sample and width."""
        if self._wrapped[0] != (text, width):
            lines = list(Text(tidy(text)).wrap(self.console, width, tab_size=4))
            for line in lines:
                line.rstrip()
            self._wrapped = (text, width), lines
        return self._wrapped[1]


def title(state: State, now: float, width: int, activity: str, final: bool) -> Text:
    """A rule with the run's name, what it does at the moment, the time that has passed and the time to go."""
    remaining = None if final else state.remaining(now)
    time = duration(state.elapsed(now)) + ("" if remaining is None else f", eta {duration(remaining)}")
    name = Text(f" {printable(state.run.name)} ", "bold")
    if activity:
        name.append(f"{activity} ", "yellow")
    end = Text(f" {time} ")
    name.truncate(max(0, width - end.cell_len - 4), overflow="ellipsis")
    rule = max(0, width - name.cell_len - end.cell_len - 4)
    return Text().append("──", "dim").append_text(name).append("─" * rule, "dim").append_text(end).append("──", "dim")


def bar(state: State, width: int) -> Text:
    """Steps done, a bar, and the share."""
    total = max(1, state.max_steps)
    share = min(1.0, state.step / total)
    before, after = f" {state.step:>{len(f'{total:,}')},}/{total:,}  ", f"  {int(100 * share):>3d}%"
    length = max(0, width - len(before) - len(after))
    halves = int(share * 2 * length)
    done = "━" * (halves // 2) + "╸" * (halves % 2)
    colour = "green" if share == 1 else "cyan"
    return Text(before).append(done, colour).append("─" * (length - len(done)), "dim").append(after)


def flowing(figures: Sequence[tuple[str, str]], width: int, most: int) -> list[Text]:
    """The figures, the first ones first, in lines; what `most` lines have no room for is left out."""
    gap = "   " if width >= ROOMY else "  "
    lines = [Text(" ")]
    for figure, style in figures:
        if lines[-1].cell_len + len(figure) > width:
            lines.append(Text(" "))
        lines[-1].append(figure, style).append(gap)
    for line in lines:
        line.rstrip()
    return lines[:most]


def curve(state: State, width: int, height: int) -> list[Text]:
    """The running mean of the training loss, with its range."""
    columns = width - 9
    values = state.curve.columns(columns)
    if len(values) < 2 or height < 1 or width < NARROWEST:
        return []
    values = [values[i * len(values) // columns] for i in range(columns)]  # few of them are drawn wider
    low, high = limits(values)
    labels = [""] * height
    labels[-1] = f"{low:.3f}"
    labels[0] = f"{high:.3f}" if height > 1 else "loss"
    rows = chart(values, height)
    return [Text().append(f"{label:>8} ", "dim").append(row, "cyan") for label, row in zip(labels, rows, strict=True)]


def evaluations(state: State, width: int, room: int) -> list[Text]:
    """A table of the newest evaluations; the best one is always among them."""
    count = min(room - 2, MOST_EVALUATIONS)
    if not state.evaluations or count < 1 or width < NARROWEST:
        return []
    best = state.best
    shown = state.evaluations[-count:]
    if best is not None and best not in shown:
        shown = [best, *shown[1:]] if count > 1 else shown
    with_bits = width >= 48 and any(one.bits_per_byte is not None for one in shown)
    head = f"{'step':>9}{'val loss':>10}{'change':>9}" + (f"{'bits/byte':>11}" if with_bits else "")
    return [Text(), Text().append(head, "dim"), *(_evaluation(one, best, with_bits) for one in shown)]


def _evaluation(one: Evaluation, best: Evaluation | None, with_bits: bool) -> Text:
    line = Text(f"{one.step:>9,}").append(f"{one.loss:>10.4f}", "bold" if one is best else "")
    change = "" if one.change is None else f"{one.change:+.4f}"
    line.append(f"{change:>9}", "green" if change.startswith("-") else "red")
    if with_bits:
        line.append(f"{one.bits_per_byte:>11.4f}" if one.bits_per_byte is not None else " " * 11)
    return line.append("  best" if one is best else "", "green")


def beside(left: Sequence[Text], right: Sequence[Text], split: int) -> list[Text]:
    """Two columns; the right one may be of uncertain width, so it is the last."""
    lines = []
    for i in range(max(len(left), len(right))):
        line = left[i].copy() if i < len(left) else Text()
        line.truncate(split, pad=True)
        lines.append(line.append_text(right[i]) if i < len(right) else line)
    return lines
