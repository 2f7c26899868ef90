"""The network of a run that begins with a model's weights: that model's, but for what the config says otherwise."""

from functools import reduce
from typing import Any, TypeVar

from pydantic import ValidationError

from minigpt.config import Config, ModelConfig, RequestError
from minigpt.config.base import Section
from minigpt.config.extension import Extension
from minigpt.config.yaml import dump_yaml, show
from minigpt.interop.huggingface.reading import read_config
from minigpt.interop.meaning import differences, meaning
from minigpt.storage import require_trust, resolve_model

Part = TypeVar("Part", bound=Section)

OF_THE_RUN = ("dropout", "init_from", "init_std", "init_residual", "init_head_std")
"""Keys of `model` that are about training: a run has its own, whatever its weights come from."""


def settle_network(config: Config, saved: Config | None = None) -> Config:
    """With `model.init_from`, the config in which every key of the network that nobody set is that model's.

    saved: the config of the run that goes on: it has them already, and that model need not be there any more.
    Raises RequestError if a key that was set says another network, if the model brings code that nobody allowed to
    run, or if rows of its context do not fill the batch.
    """
    model = config.model
    if model.init_from is None:
        return config
    if saved is not None:
        other = saved.model
    else:
        folder = resolve_model(model.init_from).path
        other = read_config(folder)
        if isinstance(other.mlp, Extension) and "mlp" not in model.model_fields_set:
            require_trust(folder)
    try:
        model = _filled(model, other)
        config = config.model_copy(update={"model": ModelConfig.model_validate(dict(model))})
        if saved is None:
            _require_same(config.model, other)
        config.require_whole_batches()
        if config.schedule.window is not None and config.model.attention_window is None:
            raise ValueError(f"schedule.window can have no effect, since {model.init_from} has no window: leave it out")
    except (ValidationError, ValueError) as error:
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise RequestError(said.removeprefix("Value error, ")) from error
    return config


def _filled(mine: Part, other: Part) -> Part:
    """`mine`, whose keys that were not set have the values of `other`."""
    update: dict[str, Any] = {}
    for key in type(mine).model_fields:
        value, there = getattr(mine, key), getattr(other, key)
        if key in OF_THE_RUN:
            continue
        if key not in mine.model_fields_set:
            update[key] = there
        elif isinstance(value, Section) and type(value) is type(there):
            update[key] = _filled(value, there)
    return mine.model_copy(update=update)


def _require_same(model: ModelConfig, other: ModelConfig) -> None:
    """Raises RequestError naming the keys in which `other`, the model of `init_from`, is another network."""
    differing = differences(model, other)
    if model.padded_vocab_size != other.padded_vocab_size and "model.vocab_size" not in differing:
        differing["model.vocab_multiple"] = (model.vocab_multiple, other.vocab_multiple)
    if model.n_layer != other.n_layer:  # what is said layer by layer differs with their number
        differing = {key: values for key, values in differing.items() if not isinstance(values[0], list)}
    ours, theirs = meaning(model), meaning(other)
    shared = {key: values for key, values in differing.items() if (key in ours) == (key in theirs)}
    if differing:  # options of a part that only one has follow from the part itself
        said = ", ".join(_difference(key, model, other, values) for key, values in (shared or differing).items())
        raise RequestError(f"model.init_from={model.init_from} is another network: {said}")


def _difference(key: str, model: ModelConfig, other: ModelConfig, values: tuple[Any, Any]) -> str:
    """One key of two configs in words: as both wrote it, or what that means where one left it open."""
    path = key.removeprefix("model.").split(".")
    if " " not in key:
        written = reduce(getattr, path, model), reduce(getattr, path, other)
        plain = all(isinstance(value, str | int | float) for value in written)
        values = written if plain and written[0] != written[1] else values
    mine, there = (dump_yaml(value).strip() if isinstance(value, list) else show(value) for value in values)
    return f"{key}={mine} is {there} there"
