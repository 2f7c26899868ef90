"""`minigpt tokenizer train|encode|decode|info`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from minigpt.cli import options
from minigpt.cli.help import Command
from minigpt.cli.output import one_of, print_json, read_text, say, write
from minigpt.cli.sources import SOURCE_HELP, progress_bar, source_data
from minigpt.config import RequestError, load_config

app = typer.Typer(help="Train and use tokenizers.", rich_markup_mode=None)

PATH_HELP = "A tokenizer.json, its folder, a run, or a folder with encoder.json and vocab.bpe"
TokenizerPath = Annotated[str, typer.Option("--tokenizer", "-t", metavar="PATH", help=PATH_HELP, show_default=False)]


SPECIAL_TOKENS: list[str] = options.key_default("tokenizer.special_tokens")


class Kind(StrEnum):
    """Tokenizers that are trained here."""

    bpe = "bpe"
    char = "char"


@app.command("train", cls=Command)
def train(
    context: typer.Context,
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help=SOURCE_HELP, show_default=False)],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; it must not exist", show_default=False)],
    kind: Annotated[Kind, typer.Option(metavar="bpe|char", help="A byte-level BPE, or one id a character")] = Kind.bpe,
    vocab_size: Annotated[int, options.key_flag("tokenizer.vocab_size")] = options.key_default("tokenizer.vocab_size"),
    pattern: Annotated[str, options.key_flag("tokenizer.pattern")] = options.key_default("tokenizer.pattern"),
    special_tokens: Annotated[
        list[str], options.key_flag("tokenizer.special_tokens", "special_token")
    ] = SPECIAL_TOKENS,
) -> None:
    """Train a tokenizer on text."""
    values: dict[str, Any] = {"vocab_size": vocab_size, "pattern": pattern, "special_tokens": list(special_tokens)}
    given = {name: value for name, value in values.items() if options.was_given(context, name)}
    settings, _ = load_config({"tokenizer": {"kind": str(kind), **given}})
    data = source_data(sources)
    if out.exists():
        raise RequestError(f"--out {out} exists already: name a new folder, or remove this one first")

    from minigpt.data import iter_training_text
    from minigpt.storage import atomic_folder
    from minigpt.tokenizer import build_tokenizer

    config = settings.tokenizer
    separator = config.special_tokens[0] if config.kind == "bpe" and config.special_tokens else None
    with progress_bar() as bar:
        trained = build_tokenizer(config, lambda: iter_training_text(data, separator=separator, on_progress=bar))
    with atomic_folder(out) as folder:
        trained.save(folder)
    say(f"{trained.vocab_size:,} ids in {out}")


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

    from minigpt.tokenizer import load_tokenizer

    ids = [int(token) for token in load_tokenizer(tokenizer).encode(given, allow_special=allow_special)]
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

    from minigpt.tokenizer import load_tokenizer

    text = load_tokenizer(tokenizer).decode(numbers, skip_special=skip_special)
    if json:
        print_json({"text": text})
    else:
        write(text + "\n")


def _read_ids(file: str) -> list[int]:
    words = read_text(file, "--file").split()
    for word in words:
        if not (word.isascii() and word.isdigit()):
            raise RequestError(f"--file {file}: {word[:40]!r} is not a token id")
    return [int(word) for word in words]


@app.command("info", cls=Command)
def info(
    path: Annotated[str | None, typer.Argument(metavar="PATH", help=PATH_HELP, show_default=False)] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", "-t", metavar="PATH", help="The same", show_default=False)
    ] = None,
    json: options.Json = False,
) -> None:
    """Describe a tokenizer."""
    one_of({"PATH": path, "--tokenizer": tokenizer})

    from minigpt.tokenizer import CharTokenizer, load_tokenizer

    found = load_tokenizer(path or tokenizer or "")
    facts = {
        "kind": "char" if isinstance(found, CharTokenizer) else "byte-level" if found.exact_bytes else "other",
        "vocab_size": found.vocab_size,
        "eot_id": found.eot_id,
        "special_tokens": found.special_tokens,
        "fingerprint": found.fingerprint,
    }
    if json:
        print_json(facts)
        return
    special = ", ".join(f"{name} ({number})" for name, number in found.special_tokens.items())
    for name, value in {**facts, "special_tokens": special or "none"}.items():
        write(f"{name.replace('_', ' '):<15} {'none' if value is None else value}\n")
