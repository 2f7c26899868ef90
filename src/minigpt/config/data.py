"""What a model is trained on: its sources, how they are mixed, and how documents become rows."""

from typing import Literal, Self

from pydantic import Field, model_validator

from minigpt.config.base import Section
from minigpt.config.sources import Sources


class StageConfig(Section):
    """From a point of the run on, other weights of the sources."""

    from_step: int | None = Field(None, ge=1)
    """First optimizer step of the stage."""
    from_fraction: float | None = Field(None, gt=0, lt=1)
    """In place of it: the share of the run's steps that come before the stage."""
    weights: dict[str, float] = Field(min_length=1)
    """Weight of each source in the stage, by its name; 0, or leaving it out, means not at all."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if (self.from_step is None) == (self.from_fraction is None):
            raise ValueError("a stage needs from_step or from_fraction, one of them, to say when it begins")
        for name, weight in self.weights.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"the weight of {name} in a stage is {weight}: it must be 0 or more")
        if not any(self.weights.values()):
            raise ValueError("a stage needs at least one source with a weight above 0")
        return self


class DataConfig(Section):
    """What the model is trained and validated on."""

    train: Sources | None = None
    """Text: a path, glob, folder, URL, hub:NAME, demo:stories, demo:dialogues, file.py:Class, a mapping or a list."""
    val: Sources | None = None
    """Separate validation text, given as `train` is; null means the last `val_fraction` of `train`."""
    val_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the characters of `train` (of each source in a mixture), at its end, kept for validation (0: none)."""
    val_documents: int | None = Field(None, ge=1)
    """With streaming: keep the first so many documents of `train` for validation."""
    append_eot: bool = True
    """End each document of a source of several documents with the tokenizer's end-of-text token."""
    mixing: Literal["auto", "concatenate", "size"] = "auto"
    """Sources: one after the other (concatenate), a mixture by size (size); auto: a mixture if they have weights."""
    max_epochs: float | None = Field(None, gt=0)
    """Refuse a run that would see a source of the mixture more often than this; null means that all may repeat."""
    stages: list[StageConfig] = Field([])
    """Weights that change during the run: a list of {from_step or from_fraction, weights}, in order."""
    shuffle: bool = True
    """Train on windows of the text in a random order, another one each epoch; false: from beginning to end."""
    shuffle_tokens: int | None = Field(None, ge=1)
    """Shuffle within stretches of about so many tokens, and the stretches; null: everything, or a shard of a store."""
    packing: Literal["contiguous", "documents"] = "contiguous"
    """Rows: windows of the running text (contiguous), or documents fitted together, hardly one cut (documents)."""
    document_mask: bool = False
    """Let no token see another document of its row."""
    restart_positions: bool = True
    """With document_mask: count the positions of each document from 0."""
    max_document_tokens: int | None = Field(None, ge=1)
    """Cut longer documents off after so many tokens."""
    min_document_tokens: int | None = Field(None, ge=1)
    """Leave out documents of fewer tokens."""
    deduplicate: bool = False
    """Leave out documents whose text has come before, to the letter; in a mixture, within each source."""
    streaming: bool = False
    """Tokenize while training instead of before, for text too large to prepare."""
    shuffle_buffer: int = Field(10_000, ge=1)
    """With streaming: documents (67 million tokens at most) from which the next one is drawn at random."""
    workers: int | None = Field(None, ge=1)
    """Threads that tokenize; null means as many as there are cores."""
    shard_tokens: int = Field(1 << 28, ge=1024)
    """Tokens in one file of prepared text."""
    store_cache_gb: float = Field(20.0, gt=0)
    """Disk space for shards that are read from a store."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        weighed = [s.weight is not None or s.repeat is not None for s in self.train or []]
        if any(weighed) and not all(weighed):
            raise ValueError("some sources of data.train have a weight or repeat and some have none: give it to all")
        if self.mixing != "auto" and any(weighed):
            raise ValueError(f"data.mixing={self.mixing} takes no weights: leave out weight and repeat, or mixing")
        for names in ([s.name for s in sources or []] for sources in (self.train, self.val)):
            if twice := [name for name in names if name is not None and names.count(name) > 1]:
                raise ValueError(f"two sources are called {twice[0]}: give each a name of its own")
        if self.packing == "documents" and not self.shuffle:
            raise ValueError("data.packing=documents brings documents into another order: leave out data.shuffle=false")
        for kind in ("from_step", "from_fraction"):
            starts = [start for stage in self.stages if (start := getattr(stage, kind)) is not None]
            if starts != sorted(set(starts)):
                raise ValueError("the stages of data.stages must begin one after the other")
        return self

    @property
    def is_mixture(self) -> bool:
        """Whether the sources are drawn from by weight, each with an order of its own."""
        weighed = any(s.weight is not None or s.repeat is not None for s in self.train or [])
        return weighed or self.mixing == "size" or bool(self.stages)
