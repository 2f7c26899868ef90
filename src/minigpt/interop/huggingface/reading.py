"""Hugging Face folders as models: which family it is, its configuration, its weights under our names."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigpt import storage
from minigpt.config import ModelConfig, RequestError, WorkError
from minigpt.interop.begin import begin_ids
from minigpt.interop.huggingface.families import FAMILIES
from minigpt.interop.huggingface.family import Family
from minigpt.interop.importing import Imported
from minigpt.interop.sources import RenamedSource, open_folder
from minigpt.interop.tensors import Rule, TensorSource, check_source, to_ours
from minigpt.model import GPT
from minigpt.storage.model_folder import MODEL_TYPE, find_tokenizer, read_model_json

MOST_LAYERS = 1000


def read_config(folder: Path) -> ModelConfig:
    """The architecture of any model folder, ours or Hugging Face's. `RequestError` for one that minigpt cannot run."""
    hf_config = read_model_json(folder)
    if hf_config["model_type"] == MODEL_TYPE:
        return storage.load_model_config(folder)
    return find_family(hf_config, folder).read(hf_config)


def read_state(folder: Path) -> dict[str, Tensor]:
    """The fp32 weights of any model folder by our names. Errors as `read_folder`."""
    if read_model_json(folder)["model_type"] == MODEL_TYPE:
        return storage.load_state(folder)
    return dict(read_folder(folder).tensors)


def build_model(folder: Path, device: str | torch.device = "cpu", trust_code: bool | None = None) -> GPT:
    """The network of any model folder, with its weights, in evaluation mode (see `storage.build_model`)."""
    if read_model_json(folder)["model_type"] == MODEL_TYPE:
        return storage.build_model(folder, device, trust_code)
    imported = read_folder(folder)
    with torch.device("meta"):
        model = GPT(imported.config)
    model.to_empty(device="cpu")
    state = model.state_dict()
    for name, tensor in imported.tensors:  # one at a time: memory stays near the model's own
        state[name].copy_(tensor)
    return model.to(device).eval()


def read_folder(folder: Path) -> Imported:
    """A Hugging Face folder. Every tensor is accounted for before the first is read.

    Raises `RequestError` for a class or an option that minigpt does not have, `WorkError` for tensors that are missing,
    unknown or misshapen and for a file that would run code, `CorruptFolderError` for damaged files.
    """
    hf_config = read_model_json(folder)
    family = find_family(hf_config, folder)
    config = family.read(hf_config)
    tensors = family_tensors(family, config, open_folder(folder))
    return Imported(config, tensors, find_tokenizer(folder), begin=begin_ids(folder))


def family_tensors(family: Family, config: ModelConfig, source: TensorSource) -> Iterator[tuple[str, Tensor]]:
    """Our tensors of theirs, all checked at once, then read one after the other."""
    rules, source = checked_rules(family, config, source)
    return to_ours(rules, source.get)


def checked_rules(family: Family, config: ModelConfig, source: TensorSource) -> tuple[list[Rule], TensorSource]:
    """The rules of a model, and its tensors as the class names them: all there, none unknown, none misshapen."""
    rules = family.rules(config)
    with torch.device("meta"):
        expected = GPT(config).state_dict()
    source = _with_prefix(family, source)
    ignored = family.ignored
    if config.tie_embeddings and family.head in source.names():
        _require_tied(rules[0].theirs[0], family.head, source)
        ignored = (*ignored, family.head)
    check_source(rules, expected, source, ignored)
    return rules, source


def find_family(hf_config: Mapping[str, Any], folder: Path) -> Family:
    """The family of a config.json. `RequestError` with those that minigpt knows if it is none of them."""
    name = hf_config["model_type"]
    if name not in FAMILIES:
        raise RequestError(f"{folder} is a {name!r} model, which minigpt cannot read; it reads {', '.join(FAMILIES)}")
    if hf_config.get("quantization_config") is not None:
        raise RequestError(f"{folder} is a quantised model, which minigpt cannot read: give the original one")
    layers = hf_config.get("num_hidden_layers", hf_config.get("n_layer"))
    if isinstance(layers, int) and layers > MOST_LAYERS:  # else this many would be made before any is missed
        raise RequestError(f"{folder} says that it has {layers:,} layers: minigpt reads at most {MOST_LAYERS:,}")
    return FAMILIES[name]


def _with_prefix(family: Family, source: TensorSource) -> TensorSource:
    """The names as the class has them: a file of the network without its head lacks the prefix (`gpt2` on the hub)."""
    names = source.names()
    if any(name.startswith(family.prefix) for name in names):
        return source
    return RenamedSource(source, {name if name == family.head else family.prefix + name: name for name in names})


def _require_tied(embed: str, head: str, source: TensorSource) -> None:
    """A tied model may be saved with its head, which then must be the embedding."""
    if embed in source.names() and not torch.equal(source.get(embed), source.get(head)):
        raise WorkError(f"{source.place} has a head of its own ({head}), but tie_word_embeddings says that it has none")
