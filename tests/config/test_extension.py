"""Classes from the user's own files: found, checked, recorded; and each way to get it wrong is one sentence."""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Protocol

import pytest

from minigpt.config import Config, RequestError, Section, WorkError, config_yaml, load_config, resolved
from minigpt.config.extension import (
    Extension,
    anchored,
    build,
    is_extension_kind,
    load_class,
    portable,
    settled,
    source,
)


class Base:
    """What the classes of the tests are derived from."""


class Shape(Protocol):
    """What the classes of the tests can do."""

    sides: int

    def area(self) -> float: ...

    def colour(self) -> str: ...


TEXT = '''
from dataclasses import dataclass
from pydantic import Field
from minigpt.config import Section

@dataclass
class Point:
    x: int = 0

class Inner(Section):
    depth: int = 2

class Good:
    class Config(Section):
        rate: float = Field(0.5, gt=0, le=1)
        """How much."""
        name: str
        """What it is called."""
        inner: Inner = Inner()
        words: list[str] = []

    def __init__(self, config, *, extra=None):
        self.config, self.extra, self.point = config, extra, Point(3)

class Plain:
    def __init__(self, config):
        self.config = config

class Area:
    def area(self): return 1.0

class Square:
    def __init__(self, config):
        pass
    def area(self): return 1.0
    def colour(self): return "red"

class Whole(Square):
    def __init__(self, config):
        self.sides = 4

class Broken:
    def __init__(self, config):
        raise ValueError("no such\\nthing")

class Refusing:
    def __init__(self, config):
        from minigpt.config import RequestError
        raise RequestError("not with me")

class Unstrict:
    class Config:
        pass

class Reserved:
    class Config(Section):
        sha256: str = ""

VALUE = 3
'''
RAISES = TEXT[: TEXT.index("raise ValueError")].count("\n") + 1


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(TEXT)
    return path


def refusal(extension: Extension, base: type | None = None, **given: object) -> str:
    with pytest.raises(RequestError) as caught:
        build(extension, base, "callbacks.own.0", **given)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400 and "pydantic" not in message.lower(), message
    return message


@pytest.mark.parametrize(
    ("kind", "yes"),
    [
        ("a.py:B", True), ("/x/y z/a.py:_b1", True), ("C:\\a.py:B", True), ("../a.py:Größe", True), ("~/a.py:B", True),
        ("a.py", False), ("a.py:", False), ("a.py:1", False), ("a.txt:B", False), (".py:B", False), ("pretrain", False),
        ("a.py:B.C", False), ("a.py:B\n", False), ("", False), (None, False), (3, False),
    ],
)  # fmt: skip
def test_what_names_a_class(kind, yes):
    assert is_extension_kind(kind) is yes


def test_an_object_is_made_from_its_options_and_what_it_is_given(file):
    made = build(Extension(kind=f"{file}:Good", name="x", rate=1), None, "here", extra=7)
    assert (made.config.rate, made.config.name, made.config.inner.depth, made.extra) == (1.0, "x", 2, 7)
    assert made.point.x == 3  # a dataclass finds its module
    assert type(made.config.rate) is float


def test_a_class_without_options(file):
    assert isinstance(build(Extension(kind=f"{file}:Plain"), None, "here").config, Section)
    assert "Plain has no options" in refusal(Extension(kind=f"{file}:Plain", rate=1))


def test_nothing_is_left_open_once_it_is_settled(file):
    done = settled(Extension(kind=f"{file}:Good", name="x"), None, "here")
    assert done.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert done.options == {"name": "x", "rate": 0.5, "inner": {"depth": 2}, "words": []}
    assert settled(done, None, "here") == done
    assert source(done) == file.read_bytes()


def test_a_file_is_imported_once_and_again_when_it_has_changed(file):
    first = load_class(f"{file}:Plain", None, "here")
    assert load_class(f"{file}:Plain", None, "here") is first
    file.write_text(TEXT + "\nPlain.new = True\n")  # at once: no timestamp decides
    second = load_class(f"{file}:Plain", None, "here")
    assert second is not first and second.new


def test_what_was_imported_is_kept_even_if_the_file_changes(file):
    done = settled(Extension(kind=f"{file}:Plain"), None, "here")
    file.write_text("class Plain: pass")
    assert source(done) == TEXT.encode()


def test_a_private_module_name_and_no_files_beside(file):
    found = load_class(f"{file}:Plain", None, "here")
    assert found.__module__.startswith("_minigpt_extension_") and "own" not in sys.modules
    assert os.listdir(file.parent) == ["own.py"]


def test_two_files_of_one_name_are_two_modules(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.py").write_text(f"class C: value = {name!r}")
    assert [load_class(f"{tmp_path}/{name}/own.py:C", None, "here").value for name in ("a", "b")] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "base", "said"),
    [
        ("Goood", None, ["has no class Goood", "the nearest one is Good"]),
        ("VALUE", None, ["VALUE", "is not a class but int"]),
        ("Good", Base, ["Good", "is no Base", "class Good(Base)"]),
        ("Area", Shape, ["Area", "lacks colour", "is no Shape"]),
        ("Square", Shape, ["own.py:Square lacks sides: set it in __init__"]),
        ("Broken", None, ["Broken cannot be made", f"line {RAISES}: ValueError: no such thing"]),
        ("Unstrict", None, ["Config of Unstrict", "minigpt.config.Section"]),
        ("Reserved", None, ["Config of Reserved", "sha256"]),
    ],
)
def test_a_class_that_cannot_be_used(file, name, base, said):
    message = refusal(Extension(kind=f"{file}:{name}"), base)
    assert message.startswith("callbacks.own.0: ") and all(part in message for part in said), message


def test_what_a_protocol_asks_for_is_enough(file):
    assert build(Extension(kind=f"{file}:Whole"), Shape, "here").sides == 4


def test_its_own_refusal_is_passed_on(file):
    assert refusal(Extension(kind=f"{file}:Refusing")) == "not with me"


def test_an_argument_that_it_does_not_take(file):
    assert "TypeError" in refusal(Extension(kind=f"{file}:Plain"), None, seed=3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"class A:\n    def f(self:\n        pass\n", "line 2 is not valid Python"),
        (b"x = 1\nimport nothing_of_this_name\n", "line 2: ModuleNotFoundError: No module named"),
        (b"def f():\n    raise KeyError('k')\n\n\nf()\n", "line 2: KeyError: 'k'"),
        (b"import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
        (b"a = 1\nb = '\xff'\n", "not valid Python"),
        (b"\x00", "cannot be imported"),
        (b"", "has no class A, nor any other"),
        (b"from minigpt.config import WorkError\nraise WorkError()\n", "line 2: WorkError"),
    ],
)
def test_a_file_that_cannot_be_imported(tmp_path, content, said):
    (tmp_path / "own.py").write_bytes(content)
    before = set(sys.modules)
    message = refusal(Extension(kind=f"{tmp_path}/own.py:A"))
    assert message.startswith(f"callbacks.own.0: {tmp_path}/own.py ") and said in message, message
    assert not [name for name in set(sys.modules) - before if name.startswith("_minigpt_extension_") and content]


def test_a_file_that_is_not_there(tmp_path):
    assert f"there is no file {tmp_path}/own.py" in refusal(Extension(kind=f"{tmp_path}/own.py:A"))
    (tmp_path / "own.py").mkdir()
    assert "cannot be read" in refusal(Extension(kind=f"{tmp_path}/own.py:A"))


def test_an_interrupt_at_import_is_no_fault_of_the_file(tmp_path):
    (tmp_path / "own.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_class(f"{tmp_path}/own.py:A", None, "here")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nam": "x"}, "unknown key callbacks.own.0.nam=x: the nearest one is callbacks.own.0.name"),
        ({"name": "x", "rates": 1}, "unknown key callbacks.own.0.rates=1: the nearest one is callbacks.own.0.rate"),
        ({}, "callbacks.own.0.name is missing: Good needs it (What it is called)"),
        ({"name": 3}, "callbacks.own.0.name=3 is not possible: input should be a valid string (What it is called)"),
        ({"name": "x", "rate": 2}, "callbacks.own.0.rate=2 is not possible: input should be less than or equal to 1"),
        ({"name": "x", "rate": "0.5"}, "callbacks.own.0.rate='0.5' is not possible: input should be a valid number"),
        ({"name": "x", "inner": {"deep": 1}}, "callbacks.own.0.inner.deep=1"),
        ({"name": "x", "words": ["a", 1]}, "callbacks.own.0.words.1=1 is not possible"),
    ],
)
def test_options_are_strict(file, options, said):
    assert refusal(Extension(kind=f"{file}:Good", **options)).startswith(said)


def test_another_file_than_the_recorded_one(file):
    done = settled(Extension(kind=f"{file}:Plain"), None, "here")
    file.write_text(TEXT + "# changed\n")
    message = refusal(done)
    assert f"{file} is not the file that the config was recorded with" in message
    with pytest.raises(RequestError):
        settled(done, None, "here")


def test_an_error_of_the_work_is_passed_on(tmp_path):
    (tmp_path / "own.py").write_text(
        "from minigpt.config import WorkError\n"
        "class A:\n    def __init__(self, config):\n        raise WorkError('the disk is full')\n"
    )
    with pytest.raises(WorkError, match="the disk is full"):
        build(Extension(kind=f"{tmp_path}/own.py:A"), None, "here")


# ---- in a config -----------------------------------------------------------------------------------------------------


def test_a_path_in_a_file_starts_from_that_file_and_on_the_command_line_from_here(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.yaml").write_text(
        "objective: {kind: ../o.py:O, rate: 1}\n"
        "model: {mlp: m.py:M}\n"
        "callbacks: {own: [c.py:C, {kind: /abs/c.py:D, x: 1}], sample: {every_steps: 1, prompt: 'p.py:P'}}\n"
        "data: {train: [s.py:S, {kind: s.py:T}, p.txt, {text: t.py:T}]}\n"
    )
    monkeypatch.chdir(tmp_path)
    config, _ = load_config("sub/c.yaml")
    assert config.objective.kind == f"{tmp_path}/o.py:O" and config.objective.options == {"rate": 1}
    assert config.model.mlp == Extension(kind=f"{tmp_path}/sub/m.py:M")
    assert [own.kind for own in config.callbacks.own] == [f"{tmp_path}/sub/c.py:C", "/abs/c.py:D"]
    assert config.callbacks.sample.prompt == "p.py:P"  # text is text
    plain = resolved(config)["data"]["train"]
    assert plain[0] == {"kind": f"{tmp_path}/sub/s.py:S"} and plain[1] == {"kind": f"{tmp_path}/sub/s.py:T"}
    assert plain[2]["path"] == "p.txt" and plain[3]["text"] == "t.py:T"
    config, _ = load_config("sub/c.yaml", ["model.mlp=m.py:M", "callbacks.own=[{kind: c.py:C}]"])
    assert config.model.mlp == Extension(kind=f"{tmp_path}/m.py:M")
    assert config.callbacks.own == [Extension(kind=f"{tmp_path}/c.py:C")]


def test_home_and_dots_in_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert anchored({"kind": "~/a.py:A"}, Path("/x")) == {"kind": f"{tmp_path}/a.py:A"}
    assert anchored({"kind": "../a.py:A"}, Path("/x/y")) == {"kind": "/x/a.py:A"}
    assert Extension(kind="~/a.py:A").path == tmp_path / "a.py"


def test_only_the_file_name_stays_when_it_is_moved():
    tree = {"kind": "/x/a.py:A", "text": "/x/b.py:B", "own": ["/x/c.py:C", {"kind": "/y/d.py:D", "n": [1, {"a": 2}]}]}
    assert portable(tree) == {
        "kind": "a.py:A", "text": "/x/b.py:B", "own": ["c.py:C", {"kind": "d.py:D", "n": [1, {"a": 2}]}]
    }  # fmt: skip


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_the_resolved_config_repeats_it(tmp_path, ending):
    tree = {
        "objective": {"kind": "/x/o.py:O", "sha256": "0" * 64, "rate": 0.5, "name": "a.py:b", "nested": {"a": [1]}},
        "model": {"mlp": {"kind": "/x/m.py:M", "power": 2}},
        "callbacks": {"own": [{"kind": "/x/c.py:C"}, {"kind": "/x/c.py:C", "decay": 0.9}]},
    }
    config, _ = load_config(tree)
    path = tmp_path / "sub" / f"c.{ending}"
    path.parent.mkdir()
    path.write_text(config_yaml(config) if ending == "yaml" else json.dumps(resolved(config)))
    again = load_config(path, ["run.name=x"])[0]
    assert (again.objective, again.model, again.callbacks) == (config.objective, config.model, config.callbacks)
    assert resolved(config)["callbacks"]["own"] == tree["callbacks"]["own"]
    assert "sha256" not in resolved(Config())["objective"]


@pytest.mark.parametrize("value", ["c.py:C", "[c.py:C]", "{kind: c.py:C}", "[{kind: c.py:C}]"])
def test_one_stands_for_a_list_of_one(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    for key in ("callbacks", "loggers"):
        config, _ = load_config({}, [f"{key}.own={value}"])
        assert getattr(config, key).own == [Extension(kind=f"{tmp_path}/c.py:C")]


def test_options_can_be_overridden(tmp_path):
    (tmp_path / "c.yaml").write_text("objective: {kind: o.py:O, rate: 1, size: 2}\nmodel: {mlp: {kind: m.py:M, a: 1}}")
    config, _ = load_config(tmp_path / "c.yaml", ["objective.rate=3", "model.mlp.a=5", "model.mlp.b=x"])
    assert config.objective.options == {"rate": 3, "size": 2}
    assert config.model.mlp == Extension(kind=f"{tmp_path}/m.py:M", a=5, b="x")


def test_another_class_has_options_of_its_own(tmp_path):
    (tmp_path / "c.yaml").write_text("objective: {kind: o.py:O, rate: 1}\nmodel: {mlp: {kind: m.py:M, a: 1}}")
    config, _ = load_config(tmp_path / "c.yaml", ["objective.kind=pretrain", "model.mlp={kind: /m.py:N, b: 1}"])
    assert config.objective == Config().objective
    assert config.model.mlp == Extension(kind="/m.py:N", b=1)
    assert load_config(tmp_path / "c.yaml", ["model.mlp=swiglu"])[0].model.mlp == "swiglu"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("objective.kind=sft", "objective.kind=sft is not possible: expected 'pretrain' or path/to/file.py:Class"),
        ("objective.knd=x", "unknown key objective.knd=x: the nearest one is objective.kind"),
        ("objective.rate=3", "unknown key objective.rate=3"),
        ("objective.sha256=" + "0" * 64, "objective.sha256="),
        ("model.mlp=swigl", "model.mlp=swigl is not possible: expected 'swiglu', "),
        ("model.mlp={a: 1}", "path/to/file.py:Class"),
        ("model.mlp.a=1", "path/to/file.py:Class"),
        ("callbacks.own=3", "callbacks.own=3"),
        ("callbacks.own=EMA", "callbacks.own.0=EMA is not possible: expected path/to/file.py:Class"),
        ("callbacks.own=[{a: 1}]", "callbacks.own.0={'a': 1} is not possible: expected path/to/file.py:Class"),
        ("callbacks.own=[a.py:A, 3]", "callbacks.own.1=3 is not possible: expected path/to/file.py:Class"),
        ("callbacks.own=[{kind: EMA}]", "callbacks.own.0.kind=EMA is not possible: expected path/to/file.py:Class"),
        ("callbacks.own=[{kind: a.py:A, sha256: abc}]", "callbacks.own.0"),
    ],
)
def test_a_wrong_kind_is_one_sentence(override, said):
    with pytest.raises(RequestError) as caught:
        load_config({}, [override])
    message = str(caught.value)
    assert said in message and "\n" not in message and "Extension" not in message and len(message) < 400, message
