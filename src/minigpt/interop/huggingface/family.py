"""What each family of Hugging Face models is to us: its configuration, its tensors, and what it cannot say.

A family is one class of transformers. Whether it represents a model of ours exactly is never looked up in a table: its
`write` says the model as well as it can, its `read` understands that again, and the keys that differ are the reason why
not (`unrepresented`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from minigpt.config import ModelConfig
from minigpt.interop.meaning import differences
from minigpt.interop.tensors import Rule


class Family(ABC):
    """One class of transformers."""

    model_type: ClassVar[str]
    """As config.json names it: "qwen3"."""
    architecture: ClassVar[str]
    """The class: "Qwen3ForCausalLM"."""
    prefix: ClassVar[str] = "model."
    """What all names but the head's begin with; a file of the network without its head lacks it."""
    head: ClassVar[str] = "lm_head.weight"
    """The head's name."""
    ignored: ClassVar[tuple[str, ...]] = (r".*\.rotary_emb\.inv_freq",)
    """Names of tensors (regular expressions) that files may have and that mean nothing."""

    @abstractmethod
    def read(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        """Our configuration of a config.json. `RequestError` naming an option that we cannot represent."""

    @abstractmethod
    def write(self, config: ModelConfig) -> dict[str, Any]:
        """A config.json that says as much of `config` as the class can; `vocab_size` must be set."""

    @abstractmethod
    def rules(self, config: ModelConfig) -> list[Rule]:
        """One rule for each tensor of a model of that configuration (which this family represents)."""


def unrepresented(family: Family, config: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """Keys of `config` that the family's class cannot say: what they are, and what the class would make of them."""
    return differences(config, family.read(family.write(config)))
