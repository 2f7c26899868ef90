"""Where text comes from and how it becomes token ids."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from minigpt.config.base import Section

PLACES = ("path", "text", "url", "demo")


class SourceConfig(Section):
    """One source of text. Exactly one of `path`, `text`, `url` and `demo` says where it is."""

    path: str | None = None
    """A file (.txt, .jsonl, .gz of these, .bin or .npy token shards), a folder, or a glob pattern."""
    text: str | None = None
    """The text itself."""
    url: str | None = None
    """An http(s) address, downloaded once into the cache."""
    demo: Literal["stories", "dialogues"] | None = None
    """Text that minigpt generates itself."""
    field: str | None = None
    """Name of the JSONL field that holds the text; null means `text`."""
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Expected SHA-256 of the download, in hexadecimal."""
    bytes: int | None = Field(None, ge=1)
    """Expected size of the download."""
    documents: int | None = Field(None, ge=1)
    """How many documents to generate (demo); null means 50,000."""
    seed: int | None = None
    """Seed of the generated text (demo); null means 0."""
    dtype: Literal["uint16", "uint32"] | None = None
    """Type of the ids in a raw .bin shard; null means uint16, as nanoGPT writes."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        places = [name for name in PLACES if getattr(self, name) is not None]
        if len(places) != 1:
            got = "none of them is" if not places else " and ".join(places) + " are"
            raise ValueError(f"a source needs exactly one of path, text, url and demo, but {got} set")
        allowed = {"path": {"field", "dtype"}, "url": {"field", "dtype", "sha256", "bytes"},
                   "demo": {"documents", "seed"}, "text": set()}[places[0]]  # fmt: skip
        for name in ("field", "sha256", "bytes", "documents", "seed", "dtype"):
            if getattr(self, name) is not None and name not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect on a source given by {places[0]}")
        return self


def _as_source(value: Any) -> Any:
    """A plain string is a URL, `demo:KIND`, or a path."""
    if not isinstance(value, str):
        return value
    if value.startswith(("http://", "https://")):
        return {"url": value}
    if value.startswith("demo:"):
        return {"demo": value.removeprefix("demo:")}
    return {"path": value}


def _as_sources(value: Any) -> Any:
    """One source stands for a list of one."""
    return value if value is None or isinstance(value, list) else [value]


Source = Annotated[SourceConfig, BeforeValidator(_as_source)]
Sources = Annotated[list[Source], BeforeValidator(_as_sources), Field(min_length=1)]


class DataConfig(Section):
    """What the model is trained and validated on."""

    train: Sources | None = None
    """Text: a path, glob, folder, URL, `demo:stories`, `demo:dialogues`, a mapping (path, field, ...) or a list."""
    val: Sources | None = None
    """Separate validation text, given as `train` is; null means the last `val_fraction` of `train`."""
    val_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the characters of `train`, at its end, kept for validation (0: no validation)."""
    append_eot: bool = True
    """End each document of a source of several documents with the tokenizer's end-of-text token."""


class TokenizerConfig(Section):
    """How text becomes token ids."""

    kind: Literal["char", "bpe", "gpt2", "file"] = "bpe"
    """One id a character (char), a byte-level BPE trained on the text (bpe), GPT-2's own, or one from `path` (file)."""
    path: str | None = None
    """tokenizer.json or its folder (file); the folder of encoder.json and vocab.bpe (gpt2; null downloads them)."""
    vocab_size: int = Field(4096, ge=1)
    """Number of ids of a trained BPE, special tokens included."""
    pattern: Literal["gpt2", "llama3", "qwen2", "gpt4o"] = "gpt2"
    """Rule by which a trained BPE splits text first, by the name that llama.cpp knows it."""
    special_tokens: list[str] = Field(["<|endoftext|>"])
    """Special tokens of a trained BPE, the end-of-text token first."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.kind == "file" and self.path is None:
            raise ValueError("tokenizer.path is needed with tokenizer.kind=file: say where the tokenizer is")
        return self
