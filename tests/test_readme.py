"""What README and the example configs say is so."""

import re
from pathlib import Path

import pytest

import minigpt
from minigpt.cli import main
from minigpt.config import load_config, preset_names

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def test_every_preset_that_readme_names_exists_and_the_other_way_round() -> None:
    section = README.split("### Presets")[1].split("##")[0]
    named = set(re.findall(r"`([a-z0-9-]+)`", section)) - {"configs/"}
    assert named | {"gpt2-124m-2048"} == set(preset_names())


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`minigpt ([a-z]+)", README))))
def test_every_command_that_readme_names_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"minigpt {command}" in capsys.readouterr().out


def test_the_python_example_uses_what_there_is() -> None:
    for name in re.findall(r"minigpt\.(\w+)\(", README):
        assert callable(getattr(minigpt, name))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_example_configs_are_valid(path: Path) -> None:
    config, notes = load_config(path)
    assert notes == []
    assert config.data.train is not None
