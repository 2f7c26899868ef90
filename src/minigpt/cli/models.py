"""Loads the MODEL that a command was given."""

from pathlib import Path
from typing import TYPE_CHECKING

from minigpt.cli.output import say

if TYPE_CHECKING:
    from minigpt.inference import LoadedModel


def load_model(path: str, device: str, threads: int | None, trust_code: bool | None) -> "LoadedModel":
    """The model of a run, checkpoint or model folder. A wrong path is an error before PyTorch is even imported.

    trust_code: see `minigpt.load`.
    """
    from minigpt.storage import require_trust, resolve_model

    folder = resolve_model(path, lambda line: say(f"minigpt: {line}"))
    require_trust(folder.path, trust_code)
    from minigpt.inference import load

    return load(folder.path, device=device, threads=threads, trust_code=trust_code)


def run_config(model_folder: Path) -> Path | None:
    """config.yaml of the run that a model's folder (RUN/model, RUN/checkpoints/step-...) belongs to."""
    for run in (model_folder.parent, model_folder.parent.parent):
        if (run / "config.yaml").is_file():
            return run / "config.yaml"
    return None
