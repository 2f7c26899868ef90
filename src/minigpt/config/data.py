"""Where text comes from and how it becomes token ids."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from minigpt.config.addresses import expand_braces
from minigpt.config.base import Section
from minigpt.config.extension import Extension, is_extension_kind

PLACES = ("path", "text", "url", "demo")


class SourceConfig(Section):
    """One source of text. Exactly one of `path`, `text`, `url` and `demo` says where it is."""

    path: str | None = None
    """A file (.txt, .jsonl, .gz of these, .parquet, .bin or .npy token shards), a folder, or a glob pattern."""
    text: str | None = None
    """The text itself."""
    url: str | None = None
    """An http(s) address, downloaded once into the cache; several as in a shell: part-{000..013}.jsonl, {a,b}.txt."""
    demo: Literal["stories", "dialogues"] | None = None
    """Text that minigpt generates itself."""
    field: str | None = None
    """Name of the JSONL field or the parquet column that holds the text; null means `text`."""
    separator: str | None = Field(None, min_length=1)
    """What stands between the documents of a text file, besides the tokenizer's end-of-text token."""
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
        allowed = {"path": {"field", "separator", "dtype"}, "url": {"field", "separator", "dtype", "sha256", "bytes"},
                   "demo": {"documents", "seed"}, "text": {"separator"}}[places[0]]  # fmt: skip
        for name in ("field", "separator", "sha256", "bytes", "documents", "seed", "dtype"):
            if getattr(self, name) is not None and name not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect on a source given by {places[0]}")
        if len(self.urls) > 1 and (self.sha256 or self.bytes):
            name = "sha256" if self.sha256 else "bytes"
            raise ValueError(f"{name} is that of one file, but url={self.url!r} stands for {len(self.urls)}")
        return self

    @property
    def urls(self) -> list[str]:
        """Every address that `url` stands for."""
        return [] if self.url is None else expand_braces(self.url)


def _as_source(value: Any) -> Any:
    """A plain string is a URL, `demo:KIND`, path/to/file.py:Class, or a path."""
    if not isinstance(value, str):
        return value
    if value.startswith(("http://", "https://")):
        return {"url": value}
    if value.startswith("demo:"):
        return {"demo": value.removeprefix("demo:")}
    return {"kind" if is_extension_kind(value) else "path": value}


def _as_sources(value: Any) -> Any:
    """One source stands for a list of one."""
    return value if value is None or isinstance(value, list) else [value]


def _tag(value: Any) -> str:
    """Whether a source is one of these or a class of the user's own, which has a `kind`."""
    has_kind = isinstance(value, Extension) or (isinstance(value, Mapping) and "kind" in value)
    return "class" if has_kind else "built-in"


Source = Annotated[
    Annotated[SourceConfig, Tag("built-in")] | Annotated[Extension, Tag("class")],
    Discriminator(_tag),
    BeforeValidator(_as_source),
]
Sources = Annotated[list[Source], BeforeValidator(_as_sources), Field(min_length=1)]


class DataConfig(Section):
    """What the model is trained and validated on."""

    train: Sources | None = None
    """Text: a path, glob, folder, URL, demo:stories, demo:dialogues, file.py:Class, a mapping (path, ...) or a list."""
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
