"""`minigpt data prepare|show`: the text of a config as token shards, and a look at it."""

import typer
from rich.console import Console
from rich.text import Text

from minigpt.cli import options
from minigpt.cli.help import Command
from minigpt.cli.output import UNPRINTABLE, print_json, say
from minigpt.cli.sources import progress_bar
from minigpt.config import Config, load_config

app = typer.Typer(help="Prepare and inspect training data.", rich_markup_mode=None)


@app.command("prepare", cls=Command)
def prepare(config: options.Config, overrides: options.Overrides = None, json: options.Json = False) -> None:
    """Tokenize a config's text into the cache, so that its runs start at once."""
    settings = _load(config, overrides)
    from minigpt import data
    from minigpt.training.setup import make_tokenizer

    with progress_bar() as bar:
        tokenizer = make_tokenizer(settings, bar)
        prepared = data.prepare(settings.data, tokenizer, on_progress=bar)
    splits = {"train": prepared.train, "val": prepared.val}
    counts = {name: split and {"documents": split.n_documents, "tokens": len(split)} for name, split in splits.items()}
    if json:
        vocabulary = {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint}
        print_json({"fingerprint": prepared.fingerprint, "tokenizer": vocabulary, "splits": counts})
        return
    for name, count in counts.items():
        if count:
            print(f"{name:<5} {count['tokens']:,} tokens in {_documents(count['documents'])}")


@app.command("show", cls=Command)
def show(config: options.Config, overrides: options.Overrides = None, json: options.Json = False) -> None:
    """Show what a run would be trained on: counts, and the first windows as text."""
    settings = _load(config, overrides)
    from minigpt import data
    from minigpt.training.setup import make_tokenizer

    with progress_bar() as bar:
        tokenizer = make_tokenizer(settings, bar)
        found = data.describe(
            settings.data,
            tokenizer,
            context_length=settings.model.context_length,
            seed=settings.run.seed,
            on_progress=bar,
        )
    if json:
        print_json(found)
        return
    for name, split in found["splits"].items():
        if split:
            line = f"{name:<5} {split['tokens']:,} tokens in {_documents(split['documents'])}, {split['bytes']:,} bytes"
            print(f"{line} ({split['bytes_per_token']:.2f} a token)")
    count = found["splits"]["train"]["windows_per_epoch"]
    print(f"      {count:,} windows of {found['context_length']:,} tokens an epoch")
    console = Console(highlight=False)
    for window in found["windows"]:
        stop = window["start"] + len(window["ids"])
        console.print(Text(f"\nepoch {window['epoch']}, tokens {window['start']:,} to {stop - 1:,}:", "bold"))
        console.print(_tokens(window["pieces"]), soft_wrap=True)


def _load(config: str, overrides: list[str] | None) -> Config:
    settings, notes = load_config(config, overrides or [])
    for note in notes:
        say(f"minigpt: {note}")
    return settings


def _documents(count: int) -> str:
    return "1 document" if count == 1 else f"{count:,} documents"


def _tokens(pieces: list[str]) -> Text:
    """The tokens of a window, in turn in two colours so that one sees where they are cut."""
    styled = [(piece.translate(UNPRINTABLE), ("", "cyan")[number % 2]) for number, piece in enumerate(pieces)]
    return Text.assemble(*styled)
