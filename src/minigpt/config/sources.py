"""Where text comes from: one source, and how several are told apart and weighed."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from minigpt.config.addresses import expand_braces
from minigpt.config.base import Section
from minigpt.config.extension import Extension, is_extension_kind

PLACES = ("path", "text", "url", "hub", "shards", "demo")

MIXED = {"name", "weight", "repeat"}
"""Keys that say what a source is among others. They do not change its text."""

FILE_KEYS = {"field", "template", "separator", "errors", "dtype"}
ALLOWED = {
    "path": FILE_KEYS,
    "url": FILE_KEYS | {"sha256", "bytes"},
    "text": {"separator"},
    "hub": {"config", "split", "revision", "streaming", "field", "template"},
    "shards": set(),
    "demo": {"documents", "seed"},
}
"""Keys that can have an effect on a source, by where it is."""


class SourceConfig(Section):
    """One source of text. Exactly one of `path`, `text`, `url`, `hub`, `shards` and `demo` says where it is."""

    path: str | None = None
    """A file (.txt, .jsonl, .csv, these as .gz or .zst; .parquet, .arrow; ids as .bin, .npy), a folder, or a glob."""
    text: str | None = None
    """The text itself."""
    url: str | None = None
    """An http(s) address, downloaded once into the cache; several as in a shell: part-{000..013}.jsonl, {a,b}.txt."""
    hub: str | None = Field(None, min_length=1)
    """A data set of the Hugging Face hub (owner/name), or a folder that the `datasets` library can load."""
    shards: str | None = Field(None, min_length=1)
    """A folder that `minigpt data prepare --out` wrote, here or in a store (s3://, gs://, https://)."""
    demo: Literal["stories", "dialogues"] | None = None
    """Text that minigpt generates itself."""
    config: str | None = None
    """Configuration (subset) of the hub data set; null means its default one."""
    split: str | None = None
    """Split of the hub data set; null means `train`."""
    revision: str | None = None
    """Commit, tag or branch of the hub data set; null means its newest."""
    streaming: bool | None = None
    """Read the hub data set as it arrives, instead of downloading it first; null means false."""
    field: str | None = Field(None, min_length=1)
    """Name of the field or column that holds the text; null means `text`."""
    template: str | None = Field(None, min_length=1)
    """The text made of several fields, as in '{title}: {body}'; a brace itself is written twice."""
    separator: str | None = Field(None, min_length=1)
    """What stands between the documents of a text file, besides the tokenizer's end-of-text token."""
    errors: Literal["strict", "replace"] | None = None
    """What to do with bytes that are no UTF-8: refuse them (null, strict), or put U+FFFD in their place (replace)."""
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
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    """What the source is called in metrics and stages; null means a name made of where it is."""
    weight: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Its share of the training rows, against the weights of the other sources."""
    repeat: float | None = Field(None, gt=0, allow_inf_nan=False)
    """In place of a weight: its own size, so many times."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        places = [name for name in PLACES if getattr(self, name) is not None]
        if len(places) != 1:
            got = "none of them is" if not places else " and ".join(places) + " are"
            raise ValueError(f"a source needs exactly one of {', '.join(PLACES[:-1])} and {PLACES[-1]}, but {got} set")
        allowed = ALLOWED[places[0]] | MIXED | {places[0]}
        for name in type(self).model_fields:
            if getattr(self, name) is not None and name not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect on a source given by {places[0]}")
        if len(self.urls) > 1 and (self.sha256 or self.bytes):
            name = "sha256" if self.sha256 else "bytes"
            raise ValueError(f"{name} is that of one file, but url={self.url!r} stands for {len(self.urls)}")
        for one, other in (("weight", "repeat"), ("field", "template")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"{one} and {other} say the same in two ways: keep one of them")
        return self

    @property
    def urls(self) -> list[str]:
        """Every address that `url` stands for."""
        return [] if self.url is None else expand_braces(self.url)


class OwnSource(Extension):
    """A source that is a class of the user's own: what it is among others, and its options."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    """As for the other sources."""
    weight: float | None = Field(None, gt=0, allow_inf_nan=False)
    """As for the other sources."""
    repeat: float | None = Field(None, gt=0, allow_inf_nan=False)
    """As for the other sources."""

    @model_validator(mode="after")
    def _one_weight(self) -> Self:
        if self.weight is not None and self.repeat is not None:
            raise ValueError("weight and repeat say the same in two ways: keep one of them")
        return self


def _as_source(value: Any) -> Any:
    """A plain string is a URL, `demo:KIND`, `hub:NAME`, an address of a store, path/to/file.py:Class, or a path."""
    if not isinstance(value, str):
        return value
    if value.startswith(("http://", "https://")):
        return {"url": value}
    for place in ("demo", "hub"):
        if value.startswith(f"{place}:"):
            return {place: value.removeprefix(f"{place}:")}
    if "://" in value:
        return {"shards": value}
    return {"kind" if is_extension_kind(value) else "path": value}


def _as_sources(value: Any) -> Any:
    """One source stands for a list of one."""
    return value if value is None or isinstance(value, list) else [value]


def _tag(value: Any) -> str:
    """Whether a source is one of these or a class of the user's own, which has a `kind`."""
    has_kind = isinstance(value, Extension) or (isinstance(value, Mapping) and "kind" in value)
    return "class" if has_kind else "built-in"


Source = Annotated[
    Annotated[SourceConfig, Tag("built-in")] | Annotated[OwnSource, Tag("class")],
    Discriminator(_tag),
    BeforeValidator(_as_source),
]
Sources = Annotated[list[Source], BeforeValidator(_as_sources), Field(min_length=1)]
