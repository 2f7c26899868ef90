"""`metrics.csv`: the metrics as a table."""

import csv
import io
import json
from pathlib import Path

from minigpt.storage import atomic_write
from minigpt.training.loggers.base import Logger, Metrics, RunInfo
from minigpt.training.loggers.logbook import METRICS

TABLE = "metrics.csv"


class CsvLogger(Logger):
    """RUN/metrics.csv: a row for each line of `metrics.jsonl`, a column for each key in the order of its first use.

    It follows that file and not what it is told, so that the two agree whatever happens to a run: after a resume, a
    restoration, or entries that were dropped. A key that is new needs a new header: then the table is written anew.
    """

    label = "CSV"

    def __init__(self) -> None:
        self._position = 0  # in `metrics.jsonl`: the table has what comes before
        self._columns: list[str] = []

    def start(self, run: RunInfo) -> None:
        """Write the table anew: the lines of later steps are gone."""
        self._source, self._table = run.run_dir / METRICS, run.run_dir / TABLE
        self._write_anew()

    def log(self, metrics: Metrics) -> None:
        """Append what `metrics.jsonl` has more than the table."""
        lines, end = _read(self._source, self._position)
        if any(key not in self._columns for line in lines for key in line):
            self._write_anew()
        elif lines:
            with open(self._table, "a", encoding="utf-8", newline="") as file:
                file.write(_rows(lines, self._columns))
            self._position = end

    def close(self) -> None:
        """Make sure of it once more."""
        self._write_anew()

    def _write_anew(self) -> None:
        lines, self._position = _read(self._source, 0)
        self._columns = list(dict.fromkeys(key for line in lines for key in line))
        header = _rows([dict(zip(self._columns, self._columns, strict=True))], self._columns) if lines else ""
        atomic_write(self._table, header + _rows(lines, self._columns))


def _read(path: Path, position: int) -> tuple[list[Metrics], int]:
    """The complete lines from byte `position` on, and where they end; another thread may be writing the next one."""
    with open(path, "rb") as file:
        file.seek(position)
        whole = file.read().rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.splitlines()], position + len(whole) + bool(whole)


def _rows(lines: list[Metrics], columns: list[str]) -> str:
    """CSV of one row for each line; floats have all their digits, what a line lacks is empty."""
    text = io.StringIO()
    csv.DictWriter(text, columns, lineterminator="\n").writerows(lines)
    return text.getvalue()
