"""Reading a JSONL file that another process may be writing, or has left damaged.

A line that cannot be read is counted and passed over, never fatal: a report of everything else is worth more than
none. Half a line at the very end is not damage: it is being written right now, or was when the process was killed.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LONGEST = 1 << 20  # bytes of a line; minigpt's own are some hundreds
NAMED = 5  # damaged lines that the report names by number


@dataclass
class Damage:
    """Which lines of a file could not be read."""

    count: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, number: int) -> None:
        """Line `number` (the first is 1) could not be read."""
        self.count += 1
        if len(self.first) < NAMED:
            self.first.append(number)

    def sentence(self, name: str) -> str | None:
        """What the report says of it; None if nothing is wrong."""
        if not self.count:
            return None
        numbers = ", ".join(map(str, self.first)) + (", …" if self.count > len(self.first) else "")
        if self.count == 1:
            return f"Line {numbers} of {name} could not be read and is left out."
        return f"{self.count:,} lines of {name} could not be read and are left out (lines {numbers})."


def read_lines(path: Path, damage: Damage) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, object) of every readable line; nothing if there is no such file. Raises OSError if it is unreadable."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(LONGEST):
            number += 1
            ended = line.endswith(b"\n")
            too_long = not ended and len(line) == LONGEST
            if too_long:
                _skip_line(file)
            entry = None if too_long else _entry(line)
            if entry is not None:
                yield number, entry
            elif (ended and line.strip()) or too_long:
                damage.add(number)


def number_of(value: Any) -> float | None:
    """A metric's value, with `NaN` and infinities written as text; None if it is no number at all."""
    if type(value) is float:  # nearly always
        return value
    if isinstance(value, str):
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}.get(value.lower().replace("infinity", "inf"))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of more than 308 digits
        return math.inf if value > 0 else -math.inf


def _skip_line(file: Any) -> None:
    while (rest := file.readline(LONGEST)) and not rest.endswith(b"\n"):
        pass


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None
