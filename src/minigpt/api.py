"""`minigpt.train`: the command `minigpt train` as a function."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minigpt.config import Config, load_config
from minigpt.training import Result
from minigpt.training import train as train_config


def train(
    config: Config | str | Path | Mapping[str, Any],
    *,
    run_dir: str | Path | None = None,
    resume: str = "auto",
    **overrides: Any,
) -> Result:
    """Train a model.

    config: a preset's name, a file, a mapping, or a Config. overrides: `section__key=value`, such as
    `data__train="input.txt", training__max_steps=100`. Raises RequestError and WorkError as the command reports them.
    """
    if not isinstance(config, Config):
        tree: dict[str, Any] = {}
        for name, value in overrides.items():
            *sections, key = name.split("__")
            node = tree
            for section in sections:
                node = node.setdefault(section, {})
            node[key] = value
        config, _ = load_config(config, tree)
    elif overrides:
        raise TypeError("overrides go with a preset, a file or a mapping; a Config is complete")
    return train_config(config, run_dir=None if run_dir is None else Path(run_dir), resume=resume)
