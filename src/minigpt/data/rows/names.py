"""What each source is called: in metrics (`data/<name>/tokens`), in the weights of stages, on the screen."""

import re
from collections.abc import Sequence

from minigpt.config import SourceConfig
from minigpt.config.sources import PLACES, OwnSource

SUFFIXES = re.compile(r"(\.(txt|text|md|jsonl|ndjson|json|csv|tsv|parquet|arrow|feather|ipc|bin|npy|gz|zst))+$", re.I)
PATTERNS = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[*?]")
"""What stands for several names in a glob or an address: {a,b}, [0-9], * and ?."""


def source_names(sources: Sequence[SourceConfig | OwnSource]) -> list[str]:
    """A name of each source: the one it was given, else one made of where it is, told apart by -2, -3, ..."""
    taken = {source.name for source in sources if source.name is not None}
    names = []
    for source in sources:
        name = source.name or _unique(_made_name(source), taken)
        taken.add(name)
        names.append(name)
    return names


def _made_name(source: SourceConfig | OwnSource) -> str:
    """The last part of a path, address, hub name or class that says something, without suffix and patterns."""
    if isinstance(source, OwnSource):
        return _clean(source.kind.rpartition(":")[2]) or "class"
    kind = next(place for place in PLACES if getattr(source, place) is not None)
    if kind in ("text", "demo"):
        return "text" if source.demo is None else source.demo
    where = str(getattr(source, kind)).split("?")[0] if kind == "url" else str(getattr(source, kind))
    parts = re.split(r"[/\\]+", where)
    cleaned = (_clean(SUFFIXES.sub("", PATTERNS.sub("", part))) for part in reversed(parts))
    return next(filter(None, cleaned), kind)


def _clean(text: str) -> str:
    """Only what a name may hold: letters, digits, dot, underscore and hyphen."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")


def _unique(name: str, taken: set[str]) -> str:
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name}-{number}"
    return unique
