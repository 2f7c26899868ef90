"""`minigpt report`, the report that every run leaves behind, and the page of `minigpt data show`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from minigpt.config import RequestError
from minigpt.reporting.data_page import render_data
from minigpt.reporting.page import NAME, render
from minigpt.reporting.runs import read_runs, require_run
from minigpt.storage import atomic_write

REPORT_FILE = "report.html"
POINTS = 400  # about so many points a series, twice that at most
ALL_POINTS = 1600  # of all runs together, so that a page of many runs stays small
FEWEST_POINTS = 40


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one run, or of several in the same charts, and give its path.

    out: None means RUN/report.html, for several runs report.html in the working directory.
    Raises RequestError for a folder that is no run or a place where no report can be, WorkError if the disk refuses.
    """
    for run in runs:
        require_run(run)
    out = out or (runs[0] / REPORT_FILE if len(runs) == 1 else Path(REPORT_FILE))
    require_place(out)
    points = max(FEWEST_POINTS, min(POINTS, ALL_POINTS // len(runs)))
    atomic_write(out, render(*read_runs(runs, points)))
    return out


def report_at_end(run_dir: Path, say: Callable[[str], None]) -> Path | None:
    """Write RUN/report.html after training, if anything was logged. Whatever goes wrong is said, and nothing more."""
    if not (run_dir / "metrics.jsonl").is_file():
        return None
    try:
        return write_report([run_dir])
    except Exception as error:  # the run is over and saved: a report must not change how it ended
        say(f"the report of {run_dir} could not be written: {error or type(error).__name__}")
        return None


def write_data_page(found: dict[str, Any], title: str, out: Path) -> None:
    """Write the page about the data of a run; `found` is what `minigpt.data.describe` gives, `title` a name for it.

    Raises RequestError for a place where no page can be, WorkError if the disk refuses.
    """
    require_place(out, "--html")
    atomic_write(out, render_data(found, title))


def require_place(out: Path, option: str = "--out") -> None:
    """Raises RequestError where a page cannot be written, or would replace a file that is not one."""
    if out.is_dir():
        raise RequestError(f"{option} {out} is a folder: name a file in it, such as {out / REPORT_FILE}")
    if not out.parent.is_dir():
        raise RequestError(f"{option} {out}: there is no folder {out.parent}")
    if out.exists() and f'content="{NAME}' not in _beginning(out, option):
        raise RequestError(f"{option} {out} exists and is not a report: choose another name, or delete it first")


def _beginning(path: Path, option: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(1000).decode("utf-8", "replace")
    except OSError as error:
        raise RequestError(f"{option} {path} cannot be replaced: {error.strerror}") from error
