"""A GGUF file as a model: its keys to a configuration, its tensors (of whatever numbers) to ours in fp32."""

from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minigpt.config import ModelConfig, RequestError, WorkError
from minigpt.interop.gguf import rotation
from minigpt.interop.gguf.architecture import Architecture
from minigpt.interop.gguf.architectures import find
from minigpt.interop.gguf.header import read_header
from minigpt.interop.gguf.library import gguf_library
from minigpt.interop.gguf.rebuilding import begin_of, rebuilt_tokenizer
from minigpt.interop.gguf.tensors import TABLE_TENSOR, rules
from minigpt.interop.tensors import check_source, to_ours
from minigpt.model import GPT
from minigpt.storage.atomic import CorruptFolderError, read_error
from minigpt.tokenizer import Tokenizer

TABLE_TOLERANCE = 1e-6  # relative: a table of 32 bits, made from numbers of 32 bits


class GGUFSource:
    """The tensors of a GGUF file (an `interop.tensors.TensorSource`), and its keys.

    RequestError: there is no such file. CorruptFolderError: it is not a whole GGUF file.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise RequestError(f"{path} does not exist")
        self.place = str(path)
        try:
            self.keys, self._tensors = read_header(np.memmap(path, dtype=np.uint8, mode="r"))
        except ValueError as error:  # also from numpy, of an empty file
            reason = f"{path.name} is not a whole GGUF file ({error})"
            raise CorruptFolderError(path.parent, reason, f"{path} is not a whole GGUF file: {error}") from error
        except OSError as error:
            raise read_error(path.parent, path.name, error) from error

    def names(self) -> Collection[str]:
        return self._tensors.keys() - {TABLE_TENSOR}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def get(self, name: str) -> Tensor:
        """The tensor in fp32."""
        entry = self._tensors[name]
        try:
            numbers = gguf_library().dequantize(entry.data, entry.kind)
        except NotImplementedError as error:
            raise RequestError(f"{self.place} has {entry.kind.name} numbers, which cannot be read here") from error
        return torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.float32).copy()).reshape(entry.shape)

    @cached_property
    def architecture(self) -> Architecture:
        """What kind of model it is. RequestError: none that is known."""
        name = str(self.keys.get("general.architecture"))
        return find(name, bool(self.keys.get(f"{name}.expert_count", 0)))

    @cached_property
    def config(self) -> ModelConfig:
        """The model's configuration. RequestError: no options represent it; WorkError: it contradicts itself."""
        prefix = f"{self.architecture.name}."
        keys = {name.removeprefix(prefix): value for name, value in self.keys.items() if name.startswith(prefix)}
        keys |= {name: value for name, value in self.keys.items() if name.startswith(rotation.OWN)}
        keys.setdefault("vocab_size", len(self.keys.get("tokenizer.ggml.tokens", [])))
        layers = keys.get("block_count")
        if isinstance(layers, int) and layers > len(self._tensors):  # else this many would be made before any is missed
            raise WorkError(f"{self.place} has {len(self._tensors)} tensors and says that it has {layers} layers")
        table = self.get(TABLE_TENSOR).tolist() if TABLE_TENSOR in self._tensors else None
        if table is not None:
            keys[rotation.TABLE] = table
        config = self.architecture.read(keys, self._tensors.keys())
        expected = self.architecture.write(config).get(rotation.TABLE)
        if (expected is None) != (table is None) or not np.allclose(
            expected or [], table or [], rtol=TABLE_TOLERANCE, atol=0
        ):
            raise WorkError(f"{self.place}: its table of rotary frequencies does not fit its other keys")
        return config

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Ours, one after the other. WorkError: theirs are not what the configuration says."""
        with torch.device("meta"):
            expected = GPT(self.config).state_dict()
        found = rules(self.architecture, self.config)
        check_source(found, expected, self)
        return to_ours(found, self.get)


def read_gguf(path: Path) -> GPT:
    """The model of a file in fp32, in evaluation mode; errors as for `GGUFSource`."""
    source = GGUFSource(path)
    return build(source.config, source.tensors())


def import_gguf(
    path: Path,
) -> tuple[ModelConfig, Iterator[tuple[str, Tensor]], Tokenizer | None, list[str], tuple[int, ...]]:
    """What an import takes of a file, as `interop.importing.Imported` has it; a tokenizer only if it can be ours."""
    source = GGUFSource(path)
    tokenizer, notes = None, []
    if source.keys.get("tokenizer.ggml.model", "no_vocab") != "no_vocab":
        try:
            tokenizer = rebuilt_tokenizer(source.keys)
        except RequestError as error:
            notes.append(str(error))
    return source.config, source.tensors(), tokenizer, notes, begin_of(source.keys)


def build(config: ModelConfig, tensors: Iterator[tuple[str, Tensor]]) -> GPT:
    """A model with these weights, in evaluation mode and without gradients."""
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cpu")
    model.load_state_dict(dict(tensors))
    return model.eval().requires_grad_(False)
