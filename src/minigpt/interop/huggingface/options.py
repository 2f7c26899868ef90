"""The content of a Hugging Face config.json: values checked one by one, with errors that name the key.

Both ways of saying things are read: that of transformers 4 (`rope_theta` and `rope_scaling` beside the others) and that
of transformers 5 (`rope_parameters`, by kind of layer where there are two).
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from minigpt.config import ModelConfig, RequestError

_MISSING: Any = object()


class Options:
    """Typed reading of a config.json of one class."""

    def __init__(self, hf_config: Mapping[str, Any], architecture: str) -> None:
        self._values, self.architecture = hf_config, architecture

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def is_null(self, key: str) -> bool:
        """Whether the key is written, as null: for those whose default is something else."""
        return key in self._values and self._values[key] is None

    def count(self, key: str, default: int) -> int:
        """A whole number, 0 included."""
        return 0 if self._values.get(key) == 0 else self.whole(key, default)

    def whole(self, key: str, default: Any = _MISSING) -> int:
        """A whole number above 0."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self._wrong(key, value, "a whole number above 0")
        return value

    def maybe_whole(self, key: str) -> int | None:
        """A whole number above 0, or none."""
        return self.whole(key) if key in self else None

    def number(self, key: str, default: Any = _MISSING) -> float:
        """A finite number."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
            raise self._wrong(key, value, "a number")
        return float(value)

    def positive(self, key: str, default: float) -> float:
        """A number above 0."""
        value = self.number(key, default)
        if value <= 0:
            raise self._wrong(key, value, "a number above 0")
        return value

    def maybe_number(self, key: str, default: float | None = None) -> float | None:
        """A number, or none: a null that is written is none, whatever the default."""
        if key in self:
            return self.number(key)
        return None if self.is_null(key) else default

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def one_of(self, key: str, default: str, known: Mapping[str, str]) -> str:
        """The meaning of a word; `RequestError` with the known ones for another."""
        value = self._get(key, default)
        if not isinstance(value, str) or value not in known:
            raise self.refusal(key, value, f"minigpt knows {', '.join(known)}")
        return known[value]

    def words(self, key: str) -> list[str] | None:
        """A list of words, or none."""
        value = self._values.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise self._wrong(key, value, "a list of words")
        return value

    def whole_numbers(self, key: str) -> list[int] | None:
        """A list of whole numbers, or none."""
        value = self._values.get(key)
        if value is not None and not (isinstance(value, list) and all(type(item) is int for item in value)):
            raise self._wrong(key, value, "a list of whole numbers")
        return value

    def section(self, key: str) -> "Options | None":
        """The options inside a key, or none."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        return Options(value, self.architecture)

    def require(self, key: str, *allowed: Any) -> None:
        """`RequestError` if the key has a value other than these (or null): minigpt has no option for it."""
        value = self._values.get(key)
        if value is not None and value not in allowed:
            raise self.refusal(key, value, "minigpt has no option for that")

    def refusal(self, key: str, value: Any, why: str) -> RequestError:
        """The sentence for a value that is possible but that we cannot represent."""
        return RequestError(f"{self.architecture} with {key}={value!r} cannot be read: {why}")

    def _get(self, key: str, default: Any) -> Any:
        value = self._values.get(key)
        if value is not None:
            return value
        if default is _MISSING or default is None:
            raise RequestError(f"the configuration of {self.architecture} has no {key}")
        return default

    def _wrong(self, key: str, value: Any, expected: str) -> RequestError:
        return RequestError(f"the configuration of {self.architecture} has {key}={value!r}: expected {expected}")


def model_config(architecture: str, **keys: Any) -> ModelConfig:
    """A `ModelConfig` of a foreign configuration; `RequestError` in one sentence if it is impossible."""
    try:
        return ModelConfig.model_validate(keys)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        named = f"model.{key}={first['input']!r}: {said}" if key else said
        raise RequestError(f"the configuration of {architecture} is not usable: {named}") from error
