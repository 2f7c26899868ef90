"""`minigpt.train`: the command `minigpt train` as a function."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minigpt.config import Config, load_config
from minigpt.reporting import report_at_end
from minigpt.training import Callback, Logger, Result
from minigpt.training import train as train_config


def train(
    config: Config | str | Path | Mapping[str, Any],
    *,
    run_dir: str | Path | None = None,
    resume: str = "auto",
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    **overrides: Any,
) -> Result:
    """Train a model.

    config: a preset's name, a file, a mapping, or a Config. overrides: `section__key=value`, such as
    `data__train="input.txt", training__max_steps=100`. callbacks and loggers come besides those of the config.
    Raises RequestError and WorkError as the command reports them. Of several processes (a script that torchrun starts)
    each calls it, and the result's `is_main` says which one speaks for all.
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
    folder = None if run_dir is None else Path(run_dir)
    result = train_config(config, run_dir=folder, resume=resume, callbacks=callbacks, loggers=loggers)
    if result.is_main:
        report_at_end(result.run_dir, lambda line: print(line, file=sys.stderr))
    return result
