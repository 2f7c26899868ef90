"""A run folder as the report sees it: finished, stopped, or being written at this moment.

Nothing here takes the run's lock, changes anything, or loads a model. What is missing or damaged becomes a note in the
report; only a folder that is no run at all is an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigpt.config import RequestError
from minigpt.config.yaml import parse_yaml
from minigpt.reporting.lines import Damage, number_of, read_lines
from minigpt.reporting.series import Series

CONFIG, METRICS, SAMPLES = "config.yaml", "metrics.jsonl", "samples.jsonl"
JOURNAL, ENVIRONMENT = "skipped.jsonl", "environment.jsonl"
PLACE = ("step", "tokens", "time")
MAX_SERIES = 120  # metrics with names of their own; more than that is no longer looked at one by one
MAX_SAMPLES = 12
MAX_ENTRIES = 500  # sessions, and skipped steps
LONGEST_SAMPLE = 3000  # characters
LONGEST_CONFIG = 200_000


@dataclass
class Sample:
    """A text that the model wrote while it was trained."""

    step: int
    text: str


@dataclass
class Run:
    """Everything that the report shows of one run."""

    path: Path
    name: str
    """The folder's name, with as much of its path as tells it from the other runs."""
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    preset: str | None = None
    series: dict[str, Series] = field(default_factory=dict)
    lines: int = 0
    step: int = 0
    tokens: float = 0.0
    seconds: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    sample_count: int = 0
    sessions: list[dict[str, Any]] = field(default_factory=list)
    incidents: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False
    notes: list[str] = field(default_factory=list)
    """What is wrong or missing, a sentence each."""

    def setting(self, key: str) -> Any:
        """A value of the config by its dotted name; None if it has none."""
        node: Any = self.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node

    @property
    def max_steps(self) -> int | None:
        """Steps that the run was to have, if that is known."""
        told = self.sessions[-1].get("max_steps") if self.sessions else None
        steps = told if told is not None else self.setting("training.max_steps")
        return steps if isinstance(steps, int) and steps > 0 else None


def read_runs(paths: Sequence[Path], points: int) -> tuple[list[Run], list[str]]:
    """The runs in these folders, each of them once, with about `points` points a series; and remarks about the request.

    Raises RequestError for a folder that is no run.
    """
    folders: list[Path] = []
    remarks = []
    for path in paths:
        require_run(path)
        if any(path.resolve() == other.resolve() for other in folders):
            remarks.append(f"{path} was given twice; it is shown once.")
        else:
            folders.append(path)
    names = distinct_names([folder.resolve() for folder in folders])
    return [read_run(folder, name, points) for folder, name in zip(folders, names, strict=True)], remarks


def require_run(path: Path) -> None:
    """Raises RequestError unless `path` is a run folder."""
    if not path.exists():
        raise RequestError(f"run {path} does not exist")
    if not path.is_dir():
        raise RequestError(f"{path} is a file: give the run's folder, which has {CONFIG} and {METRICS} in it")
    if (path / CONFIG).is_file() or (path / METRICS).is_file():
        return
    for parent in list(path.resolve().parents)[:2]:  # RUN/model, RUN/checkpoints/step-00001000
        if (parent / CONFIG).is_file() and (parent / METRICS).is_file():
            raise RequestError(f"{path} is a part of the run {parent}: give that folder")
    raise RequestError(f"{path} is not a run folder: it has neither {CONFIG} nor {METRICS}")


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """For each folder the shortest end of its path that no other one has."""

    def name(folder: Path) -> str:
        others = [other for other in folders if other != folder]
        depths = range(1, len(folder.parts))
        unique = (depth for depth in depths if all(o.parts[-depth:] != folder.parts[-depth:] for o in others))
        return "/".join(folder.parts[-next(unique, len(folder.parts)) :])

    return [name(folder) for folder in folders]


def read_run(path: Path, name: str, points: int) -> Run:
    """Read one run folder; whatever cannot be read becomes a note."""
    run = Run(path, name, finished=(path / "model" / "config.json").is_file())
    readers = {CONFIG: _read_config, METRICS: _read_metrics, SAMPLES: _read_samples,
               JOURNAL: _read_incidents, ENVIRONMENT: _read_sessions}  # fmt: skip
    for file, read in readers.items():
        damage = Damage()
        try:
            read(run, path / file, damage, points)
        except OSError as error:
            run.notes.append(f"{file} could not be read: {error.strerror or error}.")
        if said := damage.sentence(file):
            run.notes.append(said)
    return run


def _read_config(run: Run, path: Path, damage: Damage, points: int) -> None:
    if not path.is_file():
        run.notes.append(f"There is no {CONFIG}: what the run was made with is not known.")
        return
    text = path.read_bytes().decode("utf-8", "replace")
    run.config_text = text[:LONGEST_CONFIG] + ("\n…" if len(text) > LONGEST_CONFIG else "")
    try:
        tree = parse_yaml(text, CONFIG)
    except (RequestError, RecursionError) as error:
        run.notes.append(f"The settings could not be read: {error}.")
        return
    if not isinstance(tree, dict):
        run.notes.append(f"{CONFIG} holds no settings.")
        return
    preset = tree.pop("resolved_from", None)
    run.config, run.preset = tree, preset if isinstance(preset, str) else None


def _read_metrics(run: Run, path: Path, damage: Damage, points: int) -> None:
    left_out: set[str] = set()
    for number, line in read_lines(path, damage):
        step = line.get("step")
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 2**63:
            damage.add(number)
            continue
        run.lines += 1
        run.step = max(run.step, step)
        run.tokens = _finite(line.get("tokens"), run.tokens)
        run.seconds = _finite(line.get("time"), run.seconds)
        for key, value in line.items():
            found = None if key in PLACE else number_of(value)
            if found is None:
                continue
            if key not in run.series:
                if len(run.series) >= MAX_SERIES:
                    if len(left_out) < MAX_SERIES:
                        left_out.add(key)
                    continue
                run.series[key] = Series(points)
            run.series[key].add(step, run.tokens, run.seconds, found)
    if left_out:
        several = f"{len(left_out)} metrics" if len(left_out) < MAX_SERIES else "Many metrics"
        run.notes.append(f"{several} are left out: the report shows the first {MAX_SERIES} of them.")


def _finite(value: Any, otherwise: float) -> float:
    """A place on an axis; where a line has none, that of the line before."""
    found = number_of(value)
    return found if found is not None and 0 <= found < float("inf") else otherwise


def _read_samples(run: Run, path: Path, damage: Damage, points: int) -> None:
    """Keep some of the samples, evenly spread over the run; of few all, the first and the last always."""
    every, last = 1, None
    for number, line in read_lines(path, damage):
        step, text = line.get("step"), line.get("text")
        if not isinstance(step, int) or not isinstance(text, str):
            damage.add(number)
            continue
        last = Sample(step, text if len(text) <= LONGEST_SAMPLE else text[:LONGEST_SAMPLE] + "…")
        if run.sample_count % every == 0:
            run.samples.append(last)
        run.sample_count += 1
        if len(run.samples) > MAX_SAMPLES:
            run.samples = run.samples[::2]
            every *= 2
    if last is not None and run.samples[-1] is not last:
        run.samples = [*run.samples[: MAX_SAMPLES - 1], last]


def _read_incidents(run: Run, path: Path, damage: Damage, points: int) -> None:
    for _, line in read_lines(path, damage):
        if len(run.incidents) < MAX_ENTRIES:
            run.incidents.append({key: value for key, value in line.items() if key != "rows"})


def _read_sessions(run: Run, path: Path, damage: Damage, points: int) -> None:
    for _, line in read_lines(path, damage):
        run.sessions.append(line)
        if len(run.sessions) > MAX_ENTRIES:
            del run.sessions[1]  # the first one and the newest are kept
