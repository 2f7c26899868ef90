"""`minigpt tokenizer train|encode|decode|info`."""

from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minigpt.cli import options
from minigpt.cli.help import Command
from minigpt.cli.output import one_of, print_json, read_text, say, write
from minigpt.cli.sources import SOURCE_HELP, Progress, progress_bar, source_data
from minigpt.cli.tokenizer_table import print_one, print_several
from minigpt.config import DataConfig, RequestError, load_config

if TYPE_CHECKING:
    from minigpt.tokenizer import Tokenizer

app = typer.Typer(help="Train and use tokenizers.", rich_markup_mode=None)

PATH_HELP = (
    "A tokenizer.json, SentencePiece .model, tiktoken file, tokenizer.bin of llama2.c, a folder or run, "
    "hub:OWNER/NAME, or tiktoken:ENCODING"
)
TokenizerPath = Annotated[str, typer.Option("--tokenizer", "-t", metavar="PATH", help=PATH_HELP, show_default=False)]


NAMED = {"hub": "tokenizer.path", "tiktoken": "tokenizer.encoding"}
"""Tokenizers by name (hub:OWNER/NAME, tiktoken:ENCODING), and the key of the config that says the same."""
SPECIAL_TOKENS: list[str] = options.key_default("tokenizer.special_tokens")
REPORT_CHARACTERS = 1 << 20


class Kind(StrEnum):
    """Tokenizers that are trained here."""

    bpe = "bpe"
    unigram = "unigram"
    sentencepiece_bpe = "sentencepiece-bpe"
    char = "char"


@app.command("train", cls=Command)
def train(
    context: typer.Context,
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help=SOURCE_HELP, show_default=False)],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; it must not exist", show_default=False)],
    kind: Annotated[
        Kind,
        typer.Option(
            metavar="|".join(Kind), help="Byte-level BPE, SentencePiece's unigram or BPE, or one id a character"
        ),
    ] = Kind.bpe,
    vocab_size: Annotated[int, options.key_flag("tokenizer.vocab_size")] = options.key_default("tokenizer.vocab_size"),
    pattern: Annotated[str, options.key_flag("tokenizer.pattern")] = options.key_default("tokenizer.pattern"),
    special_tokens: Annotated[
        list[str], options.key_flag("tokenizer.special_tokens", "special_token")
    ] = SPECIAL_TOKENS,
    sample_characters: Annotated[int | None, options.key_flag("tokenizer.sample_characters")] = options.key_default(
        "tokenizer.sample_characters"
    ),
) -> None:
    """Train a tokenizer on text."""
    values: dict[str, Any] = {
        "vocab_size": vocab_size,
        "pattern": pattern,
        "special_tokens": list(special_tokens),
        "sample_characters": sample_characters,
    }
    given = {name: value for name, value in values.items() if options.was_given(context, name)}
    settings, _ = load_config({"tokenizer": {"kind": str(kind), **given}})
    data = source_data(sources)
    if out.exists():
        raise RequestError(f"--out {out} exists already: name a new folder, or remove this one first")

    from minigpt.data import iter_training_text
    from minigpt.storage import atomic_folder
    from minigpt.tokenizer import build_tokenizer

    config = settings.tokenizer
    separator = config.special_tokens[0] if config.kind != "char" and config.special_tokens else None
    with progress_bar() as bar:

        def texts() -> Iterator[str]:
            yield from iter_training_text(
                data, separator=separator, sample_characters=config.sample_characters, on_progress=bar
            )
            if bar is not None:
                bar("learn", 0, None)

        trained = build_tokenizer(config, texts, _reading(bar))
    with atomic_folder(out) as folder:
        trained.save(folder)
    say(f"{trained.vocab_size:,} ids in {out}")


def _reading(bar: Progress | None) -> Callable[[int], None] | None:
    """Shows how many characters have been read, not for every small document."""
    if bar is None:
        return None
    shown = 0

    def report(characters: int) -> None:
        nonlocal shown
        if characters - shown >= REPORT_CHARACTERS:
            shown = characters
            bar("read (characters)", characters, None)

    return report


@app.command("encode", cls=Command)
def encode(
    tokenizer: TokenizerPath,
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="The text", show_default=False)] = None,
    file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Read the text from a file, to the letter; - is stdin")
    ] = None,
    allow_special: Annotated[
        bool, typer.Option("--allow-special", help="Read the names of special tokens in the text as these tokens")
    ] = False,
    json: options.Json = False,
) -> None:
    """Turn text into token ids."""
    one_of({"TEXT": text, "--file": file})
    given = text if text is not None else read_text(file or "", "--file")

    ids = [int(token) for token in _load(tokenizer).encode(given, allow_special=allow_special)]
    if json:
        print_json({"ids": ids})
    else:
        print(*ids)


@app.command("decode", cls=Command)
def decode(
    tokenizer: TokenizerPath,
    ids: Annotated[list[int] | None, typer.Argument(metavar="ID", help="The token ids", show_default=False)] = None,
    file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Read the ids, separated by blanks, from a file; - is stdin")
    ] = None,
    skip_special: Annotated[bool, typer.Option("--skip-special", help="Leave special tokens out of the text")] = False,
    json: options.Json = False,
) -> None:
    """Turn token ids into text."""
    one_of({"ID": ids or None, "--file": file})
    numbers = ids or _read_ids(file or "")

    text = _load(tokenizer).decode(numbers, skip_special=skip_special)
    if json:
        print_json({"text": text})
    else:
        write(text + "\n")


def _load(name: str) -> "Tokenizer":
    """The tokenizer at a path, or one by name, which is downloaded."""
    from minigpt.tokenizer import load_tokenizer

    scheme, _, rest = name.partition(":")
    if scheme in NAMED:
        from minigpt.training.setup import make_tokenizer

        value = name if scheme == "hub" else rest
        kind = "file" if scheme == "hub" else "tiktoken"
        with progress_bar() as bar:
            return make_tokenizer(load_config({}, [f"tokenizer.kind={kind}", f"{NAMED[scheme]}={value}"])[0], bar)
    return load_tokenizer(name)


def _read_ids(file: str) -> list[int]:
    words = read_text(file, "--file").split()
    for word in words:
        if not (word.isascii() and word.isdigit()):
            raise RequestError(f"--file {file}: {word[:40]!r} is not a token id")
    return [int(word) for word in words]


@app.command("info", cls=Command)
def info(
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH", help=PATH_HELP, show_default=False)] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", "-t", metavar="PATH", help="The same", show_default=False)
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Count the tokens of this text, a file or another source of text"),
    ] = None,
    json: options.Json = False,
) -> None:
    """Describe a tokenizer, or several side by side."""
    one_of({"PATH": paths or None, "--tokenizer": tokenizer})
    names = paths or [tokenizer or ""]
    data = None if text is None else source_data([text])

    from minigpt.tokenizer.describe import Compression, batches, describe

    found = [_load(name) for name in names]
    facts = [{"path": name, **describe(one)} for name, one in zip(names, found, strict=True)]
    if data is not None:
        counts = [Compression(one) for one in found]
        with progress_bar() as bar:
            for batch in batches(_texts(data, bar)):
                for count in counts:
                    count.add(batch)
        if not any(count.bytes or count.failure for count in counts):
            raise RequestError(f"--text {text} holds no text: it is empty or all white space")
        for fact, count in zip(facts, counts, strict=True):
            fact["text"] = count.facts()
    if json:
        print_json(facts[0] if len(facts) == 1 else {"tokenizers": facts})
    elif len(facts) == 1:
        print_one(facts[0])
    else:
        print_several(facts)


def _texts(data: DataConfig, bar: Progress | None) -> Iterator[str]:
    """The documents of the source, as they are."""
    from minigpt.data import iter_training_text

    report = _reading(bar)
    characters = 0
    for document in iter_training_text(data, separator=None, on_progress=bar):
        yield document
        characters += len(document)
        if report is not None:
            report(characters)
