"""A data source of your own: a class in a Python file that yields documents.

    class Countdowns(DataSource):
        class Config(Section):
            documents: int = 1000

        def __init__(self, config: Config) -> None:
            self.count = config.documents

        def documents(self) -> Iterator[str]:
            for start in range(self.count):
                yield " ".join(map(str, range(start, -1, -1)))

`data.train={kind: countdowns.py:Countdowns, documents: 500}` trains on it. What it yields is tokenized once and found
in the cache from then on, as long as the file and the options stay the same.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from minigpt.config import DataConfig, OwnSource, RequestError, SourceConfig, WorkError
from minigpt.config.extension import Extension, blamed, build, settled
from minigpt.data.reading.fields import has_surrogates
from minigpt.data.reading.hub_datasets import hub_commit


class DataSource(ABC):
    """Base of data sources; made with its valid options."""

    @abstractmethod
    def documents(self) -> Iterator[str]:
        """The documents: the same ones in the same order whenever it is called (it is called more than once)."""

    def identity(self) -> Any:
        """Plain JSON that changes whenever the documents do without a change of the class's file or options.

        For a source that reads a file, say, the hash of that file.
        """
        return None


def settled_sources(data: DataConfig) -> DataConfig:
    """The config with what may change meanwhile recorded: file and options of own sources, commits of the hub's.

    RequestError: a source cannot be made, or is not on the hub. WorkError: the hub cannot be reached.
    """
    found = {}
    for name in ("train", "val"):
        sources = getattr(data, name)
        if sources is not None:
            found[name] = [_settled(source, f"data.{name}.{at}") for at, source in enumerate(sources)]
    return data.model_copy(update=found)


def _settled(source: SourceConfig | OwnSource, key: str) -> SourceConfig | Extension:
    if isinstance(source, OwnSource):
        return settled(source, DataSource, key)
    if source.hub is not None:
        return source.model_copy(update={"revision": hub_commit(source)})
    return source


def own_identity(source: Extension) -> dict[str, Any]:
    """What determines the documents of an own source: its class, the content of its file, its options."""
    known = settled(source, DataSource, "source")
    name = source.kind.rpartition(":")[2]
    made: DataSource = build(source, DataSource, "source")
    with _failures(source):
        more = json.dumps(made.identity(), sort_keys=True)
    return {"class": name, "sha256": known.sha256, "options": known.options, "identity": more}


def own_documents(source: Extension) -> Iterator[tuple[int, str]]:
    """(number from 0, text) of an own source. RequestError for what is no text, WorkError when the class fails.

    The first document is asked for twice: one that is another then comes from a class that forgets its seed.
    """
    made: DataSource = build(source, DataSource, "source")
    with _failures(source):
        first = next(iter(made.documents()), None)
        for number, text in enumerate(made.documents()):
            if number == 0 and text != first:
                raise RequestError(f"{source.kind} must give the same documents every time, but its first one changes")
            if not isinstance(text, str) or has_surrogates(text):
                what = "half of a surrogate pair" if isinstance(text, str) else f"no string but {type(text).__name__}"
                raise RequestError(f"{source.kind}: document {number + 1:,} is {what}")
            yield number, text


@contextmanager
def _failures(source: Extension) -> Iterator[None]:
    """Turns an error in the class into one sentence with its place (WorkError)."""
    try:
        yield
    except (RequestError, WorkError):
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
        raise WorkError(f"{blamed(error) or source.kind}: {said}") from error
