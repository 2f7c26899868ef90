"""Which rows each step trains on, and the durable journal of the ones that are left out.

The rows of a run are numbered 0, 1, 2, ... without end (the objective knows what each number means). Those
that no restoration has excluded are taken in order, so many a step as the config says for it (`minigpt.config.pace`):
the rows of a step follow from the step's number and the journal alone.

The journal (`skipped.jsonl`) holds two kinds of lines:
    {"step": 12, "rows": [...], "reason": "..."}          a bad step: its update was skipped
    {"restored_to": 8, "first_bad_step": 12, "rows": [...], "skipped_steps": 3, "reason": "..."}
                                                          a restoration: these rows never come again
Lines of the first kind are part of the trajectory: going back before their step drops them, since the steps will be
made again. Lines of the second kind stay, and so a restoration cannot repeat itself.
"""

import json
from bisect import bisect_right
from pathlib import Path
from typing import Any

from minigpt.config import WorkError
from minigpt.storage import atomic_write


class RowJournal:
    """The journal of one run folder.

    writes: whether this process is the one that writes it down; the others know it by heart.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self._writes = path, writes
        self._skips: list[dict[str, Any]] = []
        self._restorations: list[dict[str, Any]] = []
        if path.exists():
            for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
                entry = _entry(line)
                if entry is None:
                    raise WorkError(f"{path} is damaged in line {number}: without it the rows to leave out are unknown")
                (self._restorations if "restored_to" in entry else self._skips).append(entry)
        self._excluded = self._all_excluded()

    def _all_excluded(self) -> list[int]:
        return sorted({row for entry in self._restorations for row in entry["rows"]})

    @property
    def restorations(self) -> int:
        """How often the run went back to a checkpoint because of bad steps."""
        return len(self._restorations)

    def undone(self, step: int) -> tuple[int, int]:
        """(restorations, bad steps that they undid) as of `step`: those whose bad steps began there or before.

        Counted like this, the numbers of a step do not depend on which checkpoint there was to go back to.
        """
        past = [entry for entry in self._restorations if entry["first_bad_step"] <= step]
        return len(past), sum(entry["skipped_steps"] for entry in past)

    def rows(self, first: int, count: int) -> list[int]:
        """Row numbers of a step: `count` of all rows that are not excluded, from number `first` of these on."""
        row = self._row(first)
        rows: list[int] = []
        excluded = set(self._excluded)
        while len(rows) < count:
            if row not in excluded:
                rows.append(row)
            row += 1
        return rows

    def _row(self, position: int) -> int:
        """The number of the `position`-th row that is not excluded."""
        row = position
        while (shifted := position + bisect_right(self._excluded, row)) != row:
            row = shifted
        return row

    def skip(self, step: int, rows: list[int], reason: str) -> None:
        """Write down, durably, that the update of `step` was skipped."""
        self._skips.append({"step": step, "rows": rows, "reason": reason})
        self._write()

    def restore(self, restored_to: int, first_bad_step: int) -> list[int]:
        """Write down, durably, that the run goes back; returns the rows of the bad steps, which never come again."""
        bad = [entry for entry in self._skips if entry["step"] >= first_bad_step]
        rows = sorted({row for entry in bad for row in entry["rows"]})
        # Bad steps between the checkpoint and these are made again, and counted again then.
        self._restorations.append({"restored_to": restored_to, "first_bad_step": first_bad_step, "rows": rows,
                                   "skipped_steps": len(bad), "reason": bad[-1]["reason"]})  # fmt: skip
        self._excluded = self._all_excluded()
        self.rewind(restored_to)
        return rows

    def rewind(self, step: int) -> None:
        """Forget bad steps after `step`: they will be made again."""
        self._skips = [entry for entry in self._skips if entry["step"] <= step]
        self._write()

    def admits(self, step: int, restorations: int) -> bool:
        """Whether a checkpoint of `step`, saved after so many restorations, is still on the run's path."""
        return all(step <= entry["restored_to"] for entry in self._restorations[restorations:])

    def last(self) -> list[dict[str, Any]]:
        """All entries, for the report of a run that stops."""
        return self._restorations + self._skips

    def _write(self) -> None:
        lines = [json.dumps(entry) + "\n" for entry in self._restorations + self._skips]
        if self._writes and (lines or self.path.exists()):
            atomic_write(self.path, "".join(lines))


def _entry(line: str) -> dict[str, Any] | None:
    """A line of the journal; None if it is not one."""
    try:
        entry = json.loads(line)
        wanted = {"restored_to", "first_bad_step", "skipped_steps"} if "restored_to" in entry else {"step"}
        return entry if wanted | {"rows", "reason"} == entry.keys() else None
    except (ValueError, TypeError, AttributeError):
        return None
