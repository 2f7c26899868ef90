"""How text becomes token ids."""

from typing import Literal, Self

from pydantic import Field, model_validator

from minigpt.config.base import Section

HUB_PREFIX = "hub:"
NEEDS_PATH = ("file",)
TRAINED = ("char", "bpe", "unigram", "sentencepiece-bpe")
"""Kinds that are trained on the text."""


class TokenizerConfig(Section):
    """How text becomes token ids."""

    kind: Literal["char", "bpe", "unigram", "sentencepiece-bpe", "gpt2", "tiktoken", "file"] = "bpe"
    """Trained on the text: char, bpe (byte-level), unigram, sentencepiece-bpe; ready-made: gpt2, tiktoken, file."""
    path: str | None = None
    """tokenizer.json, .model, .bin, a folder, hub:OWNER/NAME[@REVISION] (file); gpt2, tiktoken: null downloads it."""
    encoding: Literal["gpt2", "r50k_base", "p50k_base", "cl100k_base", "o200k_base"] = "cl100k_base"
    """Name of the encoding (tiktoken)."""
    vocab_size: int = Field(4096, ge=1)
    """Number of ids of a trained BPE or SentencePiece model, special tokens included."""
    pattern: Literal["gpt2", "llama3", "qwen2", "gpt4o"] = "gpt2"
    """Rule by which a trained BPE splits text first, by the name that llama.cpp knows it."""
    special_tokens: list[str] = Field(["<|endoftext|>"])
    """Special tokens of a trained tokenizer, the end-of-text token first."""
    sample_characters: int | None = Field(None, ge=1)
    """Train the tokenizer on about so many characters, spread evenly over the training text; null means all of it."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.kind in NEEDS_PATH and self.path is None:
            raise ValueError(f"tokenizer.path is needed with tokenizer.kind={self.kind}: say where the tokenizer is")
        if self.path is not None and self.path.startswith(HUB_PREFIX) and self.kind != "file":
            raise ValueError(f"tokenizer.path={self.path} needs tokenizer.kind=file, not {self.kind}")
        return self
