"""What was set: a run's config as a difference from its preset or the defaults, and what differs between runs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minigpt.config import RequestError, is_preset, load_config
from minigpt.reporting.runs import Run

LONGEST = 160  # characters of a value in a table
ABSENT = "–"
# What a run settles by itself where the preset leaves it open: from the machine, the tokenizer and the command line.
OPEN = ("run.name", "run.device", "run.threads", "model.vocab_size", "training.micro_batch", "training.compile")


@dataclass(frozen=True)
class Change:
    """One key whose value is not that of the base."""

    key: str
    before: str
    now: str
    settled: bool
    """The base left it open and the run found the value by itself."""


@dataclass(frozen=True)
class Differences:
    """A run's config beside what it began as."""

    base: str
    """`the preset shakespeare-char` or `the defaults`."""
    changes: list[Change]
    same: int
    """How many keys have the base's value."""

    @property
    def base_title(self) -> str:
        """The base as the head of a column."""
        title = self.base.removeprefix("the ")
        return title[:1].upper() + title[1:]


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a tree by their dotted names; a list is a leaf."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def shown(value: Any) -> str:
    """A value as one would write it in an override, cut where it is long."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        source = {key: part for key, part in value[0].items() if key not in ("sha256", "bytes")}
        if source.keys() <= {"path", "url"}:  # a single text, as a person names it
            value = next(iter(source.values()), value)
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def differences(run: Run) -> Differences:
    """The run's config as a difference from its preset; from the defaults if it had none, or one that is gone."""
    name = run.preset if run.preset and is_preset(run.preset) else None
    try:
        base = load_config(name or {})[0]
    except RequestError:  # a shipped preset is valid; a patched one may not be
        name, base = None, load_config({})[0]
    # Keys that have no effect are not in a run's config, so they are no difference. In the base their values are there.
    before, now = flat(base.model_dump(mode="json")), flat(run.config)
    changes = [
        Change(
            key, shown(_plain(before[key])) if key in before else ABSENT, shown(_plain(value)), _is_settled(key, before)
        )
        for key, value in now.items()
        if key not in before or _plain(before[key]) != _plain(value)
    ]
    changes.sort(key=lambda change: change.settled)
    return Differences(f"the preset {name}" if name else "the defaults", changes, len(now) - len(changes))


def between(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(key, value in each run) of the keys in which the runs differ; a key that a run lacks has its default there."""
    trees = [flat(run.config) for run in runs]
    defaults = flat(load_config({})[0].model_dump(mode="json"))
    rows = []
    for key in dict.fromkeys(key for tree in trees for key in tree):
        if len({shown(tree.get(key, defaults.get(key))) for tree in trees}) > 1:
            rows.append((key, [shown(_plain(tree[key])) if key in tree else ABSENT for tree in trees]))
    return rows


def _plain(value: Any) -> Any:
    """Without the keys of a data source that are not set."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _is_settled(key: str, before: dict[str, Any]) -> bool:
    return key in OPEN and before.get(key) in (None, "auto")
