"""Cuts a sequence of documents into a training and a validation part, by a fraction of the characters.

With n characters in all, training gets the first `int(n * (1 - fraction))`, as nanoGPT does. A single text is cut at
exactly that character. Of several documents none is cut: the one in which the boundary falls is trained on. Only if
that is the last of all, so that nothing would be left to validate on, it is cut at the boundary after all. Of a mixture
each source is cut by itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from minigpt.config import DataConfig, RequestError, SourceConfig
from minigpt.data.preparing.sampling import sample_texts
from minigpt.data.reading.download import Progress
from minigpt.data.reading.sources import AnySource, Document, describe_sources, documents, is_token_source
from minigpt.storage.cache import cache_dir

SEPARATOR = "<|endoftext|>"
"""Divides the documents within a text file, for tokenizers that have it as a special token (GPT-2's convention)."""
REPORT_CHARACTERS = 4_000_000


@dataclass(frozen=True)
class Survey:
    """What one pass over the documents found: how many, how many characters, and whether they are one plain text."""

    n_documents: int
    characters: int
    is_stream: bool


def all_documents(
    sources: Sequence[AnySource], cache: Path, separator: str | None, on_progress: Progress | None = None
) -> Iterator[Document]:
    """The documents of several sources, one source after the other."""
    for source in sources:
        yield from documents(source, cache, separator, on_progress)


def survey(
    sources: Sequence[AnySource], cache: Path, separator: str | None, on_progress: Progress | None = None
) -> Survey:
    """Read everything once, and so find every fault of the text before any work on it. RequestError if it is empty."""
    count = characters = reported = 0
    streams = True
    for document in all_documents(sources, cache, separator, on_progress):
        count += 1
        characters += len(document.text)
        streams = streams and document.is_stream
        if on_progress is not None and characters - reported >= REPORT_CHARACTERS:
            on_progress("read", characters, None)
            reported = characters
    if not count:
        raise RequestError(f"{describe_sources(sources)} holds no text: it is empty or all white space")
    return Survey(count, characters, is_stream=streams and count == 1)


def boundary(found: Survey, fraction: float) -> int:
    """How many characters training gets, before whole documents are kept together. RequestError if none or all."""
    cut = int(found.characters * (1 - fraction))
    if not 0 < cut < found.characters:
        part = "training" if cut == 0 else "validation"
        raise RequestError(
            f"data.val_fraction={fraction} leaves no character for {part}: the text has {found.characters:,} characters"
        )
    return cut


def split_documents_at(documents: Iterator[Document], found: Survey, cut: int) -> Iterator[tuple[str, Document]]:
    """(`train` or `val`, document) in order; `cut` as from `boundary`, `found` about these very documents."""
    start = 0
    for number, document in enumerate(documents, start=1):
        end = start + len(document.text)
        if start < cut < end and number == found.n_documents:
            yield "train", replace(document, text=document.text[: cut - start])
            yield "val", replace(document, text=document.text[cut - start :])
        else:
            yield "train" if start < cut else "val", document
        start = end


def iter_training_text(
    data: DataConfig,
    cache: Path | None = None,
    *,
    separator: str | None = SEPARATOR,
    include_val: bool = False,
    sample_characters: int | None = None,
    on_progress: Progress | None = None,
) -> Iterator[str]:
    """The texts to train a tokenizer on: the training split alone, or with `include_val` all text there is.

    Of these about `sample_characters` characters, spread evenly (see `sample_texts`). `separator` is the special token
    that divides the documents of a text file and is in none of them (None for a tokenizer that will not have it). A
    character tokenizer wants the validation text too, as nanoGPT does: it cannot encode characters it has not seen.
    """
    texts = _training_text(data, cache or cache_dir(), separator, include_val, on_progress)
    if sample_characters is None:
        return texts
    report = None if on_progress is None else lambda characters: on_progress("sample (characters)", characters, None)
    return sample_texts(texts, sample_characters, report)


def _training_text(
    data: DataConfig, cache: Path, separator: str | None, include_val: bool, on_progress: Progress | None
) -> Iterator[str]:
    require_text(data)
    sources = training_sources(data)
    if include_val or data.val is not None:
        texts = [*sources, *(data.val or [])] if include_val else sources
        yield from (document.text for document in all_documents(texts, cache, separator, on_progress))
        return
    for unit in [[source] for source in sources] if data.is_mixture else [sources]:
        found = all_documents(unit, cache, separator, on_progress)
        if data.streaming:
            yield from (document.text for document in islice(found, data.val_documents or 0, None))
        elif data.val_fraction > 0:
            length = survey(unit, cache, separator, on_progress)
            pairs = split_documents_at(found, length, boundary(length, data.val_fraction))
            yield from (document.text for split, document in pairs if split == "train")
        else:
            yield from (document.text for document in found)


def require_text(data: DataConfig) -> None:
    """RequestError if a source holds token ids: no tokenizer can be trained on these."""
    for source in [*training_sources(data), *(data.val or [])]:
        if is_token_source(source):
            shards = source.shards if isinstance(source, SourceConfig) else None
            beside = f", {shards}/tokenizer (tokenizer.kind=file)" if shards else ""
            raise RequestError(
                f"a tokenizer cannot be trained on token ids ({describe_sources([source])}): set tokenizer.kind and "
                f"tokenizer.path to the tokenizer that made them{beside}"
            )


def training_sources(data: DataConfig) -> list[AnySource]:
    """`data.train`, which must be given."""
    if not data.train:
        raise RequestError("data.train is not set: name a file, a folder, a URL or demo:stories to train on")
    return data.train
