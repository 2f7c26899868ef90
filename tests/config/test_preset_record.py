"""A resolved config remembers which preset it was made from, and takes no values from it any more."""

import pytest

from minigpt.config import config_yaml, load_config, preset_names
from minigpt.config.yaml import parse_yaml


@pytest.mark.parametrize("name", preset_names())
def test_the_preset_is_remembered_over_any_number_of_repetitions(tmp_path, name):
    config, _ = load_config(name, ["training.epochs=2.0", "data.train=x.txt"])
    for number in range(2):
        assert config.preset == name
        text = config_yaml(config)
        assert text.startswith(f"resolved_from: {name}\n")
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        config, notes = load_config(path)
        assert notes == [] and config_yaml(config) == text


def test_a_file_that_builds_on_a_preset_has_it_too(tmp_path):
    (tmp_path / "mine.yaml").write_text("preset: demo\noptimizer: {lr: 0.5}\n")
    config, _ = load_config(tmp_path / "mine.yaml", ["run.seed=3"])
    assert config.preset == "demo" and config.run.name == "mine"


def test_without_a_preset_there_is_none(tmp_path):
    (tmp_path / "mine.yaml").write_text("optimizer: {lr: 0.5}\n")
    config, _ = load_config(tmp_path / "mine.yaml")
    assert config.preset is None and "resolved_from" not in config_yaml(config)
    assert load_config({"optimizer": {"lr": 0.5}})[0].preset is None


def test_the_record_gives_no_values(tmp_path):
    (tmp_path / "c.yaml").write_text("resolved_from: demo\noptimizer: {lr: 0.5}\n")
    config, _ = load_config(tmp_path / "c.yaml")
    plain, _ = load_config({"optimizer": {"lr": 0.5}, "run": {"name": "c"}})
    assert config.model_dump() == plain.model_dump() and config.preset == "demo"
    (tmp_path / "c.yaml").write_text("resolved_from: a-preset-that-is-gone\noptimizer: {lr: 0.5}\n")
    config, _ = load_config(tmp_path / "c.yaml")
    assert parse_yaml(config_yaml(config), "")["resolved_from"] == "a-preset-that-is-gone"


def test_the_preset_stays_with_a_config_that_is_settled():
    config, _ = load_config("demo")
    settled = config.model_copy(update={"run": config.run.model_copy(update={"threads": 2})})
    assert settled.preset == "demo"
