"""The models of a merge, read a few rows at a time, and whether they fit together."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minigpt.config import ModelConfig, RequestError, WorkError
from minigpt.interop.huggingface.reading import checked_rules, find_family, read_config
from minigpt.interop.meaning import differences
from minigpt.interop.merge.methods import Block
from minigpt.interop.sources import open_folder
from minigpt.interop.tensors import to_ours
from minigpt.model import GPT
from minigpt.storage import CorruptFolderError, ModelFolder
from minigpt.storage.atomic import read_error
from minigpt.storage.model_folder import WEIGHTS_FILE, is_own, read_model_json
from minigpt.tokenizer import Tokenizer, load_tokenizer

BLOCK = 1 << 18
"""Numbers of one tensor that are merged at a time: 2 MB of float64 for each model."""


class Weights(Protocol):
    """The tensors of a model under our names."""

    shapes: dict[str, tuple[int, ...]]

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Entries `start` to `stop` of a tensor's first dimension, in float64."""


class OwnWeights:
    """Those of a model folder of ours.

    Its file is opened anew each time: what is mapped from it leaves memory as soon as the rows are there.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / WEIGHTS_FILE
        with self._open() as file:
            self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        with self._open() as file:
            return file.get_slice(name)[start:stop].double()

    def _open(self) -> "safe_open":
        try:
            return safe_open(self.path, framework="pt")
        except SafetensorError as error:
            raise CorruptFolderError(
                self.path.parent, f"{self.path.name} is not a whole safetensors file ({error})"
            ) from error
        except OSError as error:
            raise read_error(self.path.parent, self.path.name, error) from error


class ForeignWeights:
    """Those of a Hugging Face folder. One of our tensors at a time is made of theirs and stays until the next one."""

    def __init__(self, folder: Path) -> None:
        hf_config = read_model_json(folder)
        family = find_family(hf_config, folder)
        config = family.read(hf_config)
        rules, self._source = checked_rules(family, config, open_folder(folder))
        self._rules = {rule.ours: rule for rule in rules}
        with torch.device("meta"):
            self.shapes = {name: tuple(tensor.shape) for name, tensor in GPT(config).state_dict().items()}
        self._made: tuple[str, Tensor] | None = None

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        if self._made is None or self._made[0] != name:
            self._made = None  # frees the one before
            self._made = next(to_ours([self._rules[name]], self._source.get))
        return self._made[1][start:stop].double()


@dataclass(frozen=True)
class Source:
    """One of the models."""

    name: str
    """What sentences call it."""
    config: ModelConfig
    weights: Weights
    tokenizer: Tokenizer | None


def open_model(folder: ModelFolder) -> Source:
    """The model of a folder; errors as of loading it."""
    tokenizer = load_tokenizer(folder.tokenizer_path) if folder.tokenizer_path else None
    weights = OwnWeights(folder.path) if is_own(folder.path) else ForeignWeights(folder.path)
    return Source(str(folder.path), read_config(folder.path), weights, tokenizer)


def require_alike(sources: Sequence[Source]) -> None:
    """RequestError naming the first thing in which the others are not like the first one."""
    first = sources[0]
    for other in sources[1:]:
        for key, (here, there) in differences(first.config, other.config).items():
            raise RequestError(
                f"{first.name} and {other.name} cannot be merged: {key} is {_shown(here)} in the one and "
                f"{_shown(there)} in the other"
            )
        _require_same_tokens(first, other)
        for name in [*first.weights.shapes, *other.weights.shapes]:
            here, there = first.weights.shapes.get(name), other.weights.shapes.get(name)
            if here != there:
                raise RequestError(
                    f"{first.name} and {other.name} cannot be merged: the tensor {name} has the shape {_shown(here)} "
                    f"in the one and {_shown(there)} in the other"
                )


def _require_same_tokens(first: Source, other: Source) -> None:
    one, two = first.tokenizer, other.tokenizer
    if one is None or two is None or one is two:
        return
    if (one.fingerprint, one.special_tokens) != (two.fingerprint, two.special_tokens):
        what = "special tokens" if one.fingerprint == two.fingerprint else "vocabularies"
        raise RequestError(
            f"{first.name} and {other.name} cannot be merged: their tokenizers have different {what}, so that the same "
            "rows of their weights stand for different tokens"
        )


def _shown(value: object) -> str:
    return "nothing" if value is None else str(value)


def blocks(sources: Sequence[Source], base: Source | None) -> Iterator[Block]:
    """Every row of every tensor, a block at a time. WorkError: a model has numbers that are not finite."""
    for name, shape in sources[0].weights.shapes.items():
        size = shape[0] if shape else 1
        step = max(1, BLOCK * size // max(1, torch.Size(shape).numel()))
        for start in range(0, size, step):
            stop = min(start + step, size)
            rows = [_finite(source, name, start, stop) for source in sources]
            yield Block(name, start, rows, None if base is None else _finite(base, name, start, stop))


def _finite(source: Source, name: str, start: int, stop: int) -> Tensor:
    rows = source.weights.rows(name, start, stop)
    if not math.isfinite(rows.sum()):  # float64 holds the sum of any finite fp32 numbers
        raise WorkError(f"{source.name} cannot be merged: its tensor {name} has numbers that are not finite")
    return rows
