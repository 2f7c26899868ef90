"""A data source from a user's file: its documents, its options, what the cache knows of it, and what may be wrong."""

import textwrap
from pathlib import Path

import numpy as np
import pytest

from minigpt.config import DataConfig, RequestError, WorkError, load_config, resolved
from minigpt.data import DataSource, iter_training_text, prepare, settled_sources
from minigpt.tokenizer import CharTokenizer, Tokenizer

COUNTDOWNS = """
    from minigpt.config import Section
    from minigpt.data import DataSource

    class Countdowns(DataSource):
        class Config(Section):
            documents: int = 3
            word: str = "zero"

        def __init__(self, config):
            self.config = config

        def documents(self):
            for start in range(1, self.config.documents + 1):
                yield " ".join(map(str, range(start, 0, -1))) + " " + self.config.word
"""
WANTED = ["1 zero", "2 1 zero", "3 2 1 zero"]
TOKENIZER = CharTokenizer.from_texts(["0123456789 zeronilabcdefghijkmpqstuvwxy"])


def python_file(folder: Path, text: str = COUNTDOWNS, name: str = "countdowns.py") -> Path:
    (folder / name).write_text(textwrap.dedent(text))
    return folder / name


def config(path: Path, name: str = "Countdowns", val_fraction: float = 0.0, **options) -> DataConfig:
    return DataConfig.model_validate({"train": {"kind": f"{path}:{name}", **options}, "val_fraction": val_fraction})


def refused(data: DataConfig, cache: Path, error: type[Exception] = RequestError) -> str:
    with pytest.raises(error) as caught:
        prepare(data, TOKENIZER, cache=cache)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    assert not list((cache / "tokens").glob("*/*.tok"))
    return message


class Counted:
    """A tokenizer that counts the characters it was given to encode."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.inner, self.characters = tokenizer, 0

    def __getattr__(self, name: str):
        return getattr(self.inner, name)

    def encode_arrays(self, texts: list[str]) -> list[np.ndarray]:
        self.characters += sum(map(len, texts))
        return self.inner.encode_arrays(texts)


def test_its_documents_are_trained_on(tmp_path: Path, cache: Path, bpe: Tokenizer) -> None:
    path = python_file(tmp_path)
    data = config(path, documents=3)
    assert list(iter_training_text(data, cache)) == WANTED
    train = prepare(data, bpe, cache=cache).train
    assert train.tokens(0, len(train)).tolist() == [i for text in WANTED for i in [*bpe.encode(text), bpe.eot_id]]
    assert train.n_documents == 3
    mixed = DataConfig.model_validate({"train": [{"kind": f"{path}:Countdowns"}, {"text": "nil"}], "val_fraction": 0})
    assert list(iter_training_text(mixed, cache)) == [*WANTED, "nil"]


def test_a_class_without_options_may_be_named_alone(tmp_path: Path, cache: Path, monkeypatch) -> None:
    python_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    settings, _ = load_config({}, ["data.train=countdowns.py:Countdowns", "data.val_fraction=0"])
    assert list(iter_training_text(settings.data, cache)) == WANTED


def test_a_relative_path_in_a_file_starts_from_it(tmp_path: Path, cache: Path) -> None:
    python_file(tmp_path)
    (tmp_path / "run.yaml").write_text("data: {train: {kind: countdowns.py:Countdowns, documents: 2}, val_fraction: 0}")
    settings, _ = load_config(tmp_path / "run.yaml")
    assert list(iter_training_text(settings.data, cache)) == WANTED[:2]


def test_the_cache_is_keyed_by_file_options_and_identity(tmp_path: Path, cache: Path) -> None:
    counted = Counted(TOKENIZER)

    def characters(data: DataConfig) -> int:
        before = counted.characters
        prepare(data, counted, cache=cache)
        return counted.characters - before

    path = python_file(tmp_path)
    length = sum(map(len, WANTED))
    assert characters(config(path)) == length
    assert characters(config(path)) == 0
    assert characters(config(path, documents=3)) == 0  # the default, spelled out
    assert characters(config(path, word="nil")) == length - 3
    moved = tmp_path / "moved"
    moved.mkdir()
    assert characters(config(python_file(moved))) == 0
    python_file(tmp_path, COUNTDOWNS + "\n    # changed\n")
    assert characters(config(path)) == length
    said = COUNTDOWNS + "\n        def identity(self):\n            return {'version': %d}\n"
    assert characters(config(python_file(tmp_path, said % 1))) == length
    assert characters(config(path)) == 0
    assert characters(config(python_file(tmp_path, said % 2))) == length


def test_a_run_records_the_file_and_every_option(tmp_path: Path) -> None:
    path = python_file(tmp_path)
    settings, _ = load_config({"data": {"train": {"kind": f"{path}:Countdowns", "documents": 2}}})
    data = settled_sources(settings.data)
    recorded = resolved(settings.model_copy(update={"data": data}))
    (source,) = recorded["data"]["train"]
    assert set(source) == {"kind", "sha256", "documents", "word"}
    assert (source["documents"], source["word"]) == (2, "zero")
    again, _ = load_config(recorded)
    assert settled_sources(again.data) == again.data
    python_file(tmp_path, COUNTDOWNS + "\n    # changed\n")
    with pytest.raises(RequestError, match=r"data\.train\.0: .*countdowns\.py is not the file"):
        settled_sources(again.data)


WRONG = [
    ("Nothing", COUNTDOWNS, "has no class Nothing: the nearest one is Countdowns"),
    ("Plain", "class Plain:\n    pass\n", "Plain in .* is no DataSource"),
    ("Bad", "import nowhere_at_all\n", "cannot be imported: line 1: ModuleNotFoundError"),
    ("Bad", "class Bad(\n", "is not valid Python"),
]


@pytest.mark.parametrize(("name", "text", "said"), WRONG)
def test_a_file_that_will_not_do(name: str, text: str, said: str, tmp_path: Path, cache: Path) -> None:
    message = refused(config(python_file(tmp_path, text), name), cache)
    assert str(tmp_path / "countdowns.py") in message
    with pytest.raises(RequestError, match=said):
        settled_sources(config(tmp_path / "countdowns.py", name))


def test_options_that_it_does_not_have(tmp_path: Path) -> None:
    path = python_file(tmp_path)
    with pytest.raises(
        RequestError, match=r"unknown key data\.train\.0\.document=2: the nearest one is data\.train\.0\."
    ):
        settled_sources(config(path, document=2))
    with pytest.raises(RequestError, match=r"data\.train\.0\.documents=many is not possible"):
        settled_sources(config(path, documents="many"))
    with pytest.raises(RequestError, match="there is no file"):
        settled_sources(config(tmp_path / "absent.py"))


SOURCE = """
    import itertools
    from minigpt.data import DataSource

    CALLS = itertools.count()

    class Own(DataSource):
        def __init__(self, config):
            pass

        def documents(self):
            {}
"""
FAILING = [
    ("yield 'a'; yield 3", RequestError, "Own: document 2 is no string but int"),
    ("yield 'a\\ud800'", RequestError, "Own: document 1 is half of a surrogate pair"),
    ("return iter([])", RequestError, "holds no text"),
    ("yield '  '", RequestError, "holds no text"),
    ("yield 'a'; raise OSError('the disk\\nis gone')", WorkError, "countdowns.py line 12: OSError: the disk is gone"),
    ("return None", WorkError, "countdowns.py:Own: TypeError"),
    ("yield 'a' * (next(CALLS) + 1)", RequestError, "must give the same documents every time"),
]


@pytest.mark.parametrize(("body", "error", "said"), FAILING, ids=[body for body, _, _ in FAILING])
def test_documents_that_will_not_do(body: str, error: type[Exception], said: str, tmp_path: Path, cache: Path) -> None:
    path = python_file(tmp_path, SOURCE.format(body))
    assert said in refused(config(path, "Own"), cache, error)


def test_an_identity_that_is_no_json(tmp_path: Path, cache: Path) -> None:
    path = python_file(tmp_path, COUNTDOWNS + "\n        def identity(self):\n            return {1, 2}\n")
    said = refused(config(path), cache, WorkError)
    assert said.endswith("Countdowns: TypeError: Object of type set is not JSON serializable")


def test_the_example_in_the_documentation_of_the_class(tmp_path: Path, cache: Path) -> None:
    import minigpt.data.reading.own as own

    example = own.__doc__.split("    class ", 1)[1].split("\n\n`data.train=")[0]
    lines = ["from collections.abc import Iterator", "from minigpt.config import Section", "from minigpt.data import *"]
    path = python_file(tmp_path, "\n".join(lines) + "\n" + textwrap.dedent("    class " + example))
    data = config(path, documents=3)
    assert list(iter_training_text(data, cache)) == ["0", "1 0", "2 1 0"]
    assert DataSource.identity.__doc__
