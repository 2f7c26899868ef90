"""Each way to get a class of one's own wrong is one sentence, before anything is written."""

from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = ("callback", "logger", "objective", "source", "model_part")
WHERE = {
    "callback": "callbacks.own.0",
    "logger": "loggers.own.0",
    "objective": "objective",
    "source": "data.train.0",
    "model_part": "model.mlp",
}
BASE = {"callback": "Callback", "logger": "Logger", "source": "DataSource", "model_part": "Module"}

Say = Callable[..., str]


def wrong(examples: Path, refused: Say, tiny: Say, name: str, change: Callable[[str], str]) -> str:
    path = examples / f"{name}.py"
    path.write_text(change(path.read_text("utf-8")), "utf-8")
    said = refused(*tiny(name, examples))
    assert not Path("run").exists() and said.startswith((WHERE[name], f"unknown key {WHERE[name]}")), said
    return said


@pytest.mark.parametrize("name", NAMES)
def test_a_syntax_error(examples, refused, name, tiny):
    said = wrong(
        examples, refused, tiny, name, lambda text: text.replace("class Config(Section):", "class Config(Section)")
    )
    line = (EXAMPLES / f"{name}.py").read_text().split("class Config(Section):")[0].count("\n") + 1
    assert f"{examples}/{name}.py cannot be imported: line {line} is not valid Python" in said


@pytest.mark.parametrize("name", NAMES)
def test_an_exception_at_import(examples, refused, name, tiny):
    said = wrong(examples, refused, tiny, name, lambda text: text + "\nimport nothing_of_this_name\n")
    assert f"{examples}/{name}.py cannot be imported: line " in said and "nothing_of_this_name" in said


@pytest.mark.parametrize("name", BASE)
def test_a_wrong_base(examples, refused, name, tiny):
    said = wrong(
        examples, refused, tiny, name, lambda text: text.replace(f"({BASE[name]}):", ":").replace("(nn.Module):", ":")
    )
    assert f"is no {BASE[name]}" in said


def test_an_objective_that_lacks_what_one_needs(examples, refused, tiny):
    said = wrong(examples, refused, tiny, "objective", lambda text: text.replace("(PretrainObjective):", ":"))
    assert "lacks validation_row and training_step and validation_step and parameter_groups" in said


@pytest.mark.parametrize("name", NAMES)
def test_no_such_class(examples, refused, name, tiny):
    text = (examples / f"{name}.yaml").read_text()
    kind = text.split(f"{name}.py:")[1].split()[0].rstrip(",}")
    (examples / f"{name}.yaml").write_text(text.replace(f":{kind}", f":{kind}s"))
    assert f"has no class {kind}s: the nearest one is {kind}" in refused(*tiny(name, examples))


@pytest.mark.parametrize("name", NAMES)
def test_no_such_file(examples, refused, name, tiny):
    (examples / f"{name}.py").unlink()
    assert f"{WHERE[name]}: there is no file {examples}/{name}.py" in refused(*tiny(name, examples))


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option(examples, refused, name, tiny):
    text = (examples / f"{name}.yaml").read_text()
    option = {"callback": "decay", "logger": "columns", "objective": "rate", "source": "digits", "model_part": "power"}[
        name
    ]
    (examples / f"{name}.yaml").write_text(text.replace(f"{option}: ", f"{option}z: "))
    assert f"the nearest one is {WHERE[name]}.{option}" in refused(*tiny(name, examples))


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_option(examples, refused, name, tiny):
    more = 'class Config(Section):\n        colour: str\n        """Its colour."""\n'
    said = wrong(examples, refused, tiny, name, lambda text: text.replace("class Config(Section):\n", more))
    assert f"{WHERE[name]}.colour is missing: " in said and "(Its colour)" in said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.mlp.power=0", "model.mlp.power=0 is not possible: input should be greater than or equal to 1"),
        ("model.mlp.power=2.5", "model.mlp.power=2.5 is not possible: input should be a valid integer"),
        ("model.mlp.powr=2", "unknown key model.mlp.powr=2: the nearest one is model.mlp.power"),
    ],
)
def test_a_wrong_override(refused, override, said, tiny):
    assert said in refused(*tiny("model_part"), override)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("self.down(", "self.nothing(", "fails on an input of shape (2, 3, 32): AttributeError"),
        ("return F.dropout(y", "return F.dropout(y[..., :8]", "gives (2, 3, 8) for an input of shape (2, 3, 32)"),
        ("return F.dropout(y", "return F.dropout(y.flip(1)", "mixes the positions of a row"),
        ("return F.dropout(y", "return F.dropout(y.cumsum(1)", "mixes the positions of a row"),
        (
            "self.power, ",
            'self.register_buffer("table", self.up.weight * 1)\n        self.power, ',
            "table in a buffer",
        ),
        ("model: ModelConfig)", "model: ModelConfig, more: int)", "PowerReGLU cannot be made: TypeError"),
    ],
)
def test_a_part_that_cannot_be_one(examples, refused, old, new, said, tiny):
    assert said in wrong(examples, refused, tiny, "model_part", lambda text: text.replace(old, new))


def test_an_error_while_it_runs_is_reported_with_its_place(examples, refused, tiny):
    text = (examples / "callback.py").read_text()
    changed = text.replace(
        "        self._take_in(trainer.model.state_dict())\n\n    def on_train_end",
        "        1 / 0\n\n    def on_train_end",
    )
    (examples / "callback.py").write_text(changed)
    line = changed.split("1 / 0")[0].count("\n") + 1
    said = refused(*tiny("callback", examples), status=1)
    assert said.startswith(f"{examples}/callback.py line {line}: ZeroDivisionError: division by zero")
