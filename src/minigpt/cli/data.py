"""`minigpt data prepare|show`: the text of a config as token shards, and a look at it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from minigpt.cli import options
from minigpt.cli.help import Command
from minigpt.cli.output import print_json, say
from minigpt.cli.sources import progress_bar
from minigpt.config import Config, RequestError, load_config

if TYPE_CHECKING:
    from minigpt.data import TokenDataset

app = typer.Typer(help="Prepare and inspect training data.", rich_markup_mode=None)


@app.command("prepare", cls=Command)
def prepare(
    config: options.Config,
    overrides: options.Overrides = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="Do part I (from 0) of N of the work, the others elsewhere", show_default=False
        ),
    ] = None,
    parts: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where parts are kept until all are there  [default: the cache]", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write the tokens into a new folder, too, for other machines", show_default=False
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Tokenize a config's text into the cache, so that its runs start at once.

    Stopped, it goes on where it was. On several machines: --part 0/3 --parts DIR on the first, 1/3 and 2/3 on others,
    then once without --part.
    """
    wanted = None if part is None else _part(part)
    settings = _load(config, overrides)
    if settings.data.streaming:
        raise RequestError("data.streaming=true tokenizes while training, so there is nothing to prepare: leave it out")
    from minigpt import data
    from minigpt.training.setup import make_tokenizer

    if out is not None:
        if part is not None:
            raise RequestError("--out needs all parts: give it without --part")
        data.require_new_folder(out)
    with _told_how_to_go_on(), progress_bar() as bar:
        tokenizer = make_tokenizer(settings, bar)
        if wanted is not None:
            blocks = data.prepare_part(settings.data, tokenizer, data.Part(*wanted), parts=parts, on_progress=bar)
            if json:
                print_json({"blocks": blocks})
            else:
                print(f"part {part}: {_count(blocks, 'new block')} of text")
            return
        prepared = data.prepare(settings.data, tokenizer, parts=parts, on_progress=bar)
        folders = []
        if out is not None:
            folders = data.write_folders(prepared, tokenizer, out, settings.data.shard_tokens)
    counts: dict[str, dict[str, int] | None] = {s.name: _size(s.train) for s in prepared.sources}
    val = None if prepared.val is None else _size(prepared.val)
    total: dict[str, dict[str, int] | None] = {"train": _size(prepared.train), "val": val}
    if json:
        vocabulary = {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint}
        written = {} if out is None else {"out": [str(folder) for folder in folders]}
        found = {"fingerprint": prepared.fingerprint, "tokenizer": vocabulary, "splits": total, "sources": counts}
        print_json(found | written)
        return
    if len(counts) > 1:
        total = {**counts, "val": val}
    width = max(5, *map(len, total))
    for name, count in total.items():
        if count:
            print(f"{name:<{width}} {count['tokens']:,} tokens in {_count(count['documents'], 'document')}")
    for folder in folders:
        own = f"tokenizer={{kind: file, path: {folder / 'tokenizer'}}}"
        print(f"{folder}: train on it with data.train='{{shards: {folder}}}' {own!r}")


@app.command("show", cls=Command)
def show(
    config: options.Config,
    overrides: options.Overrides = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Make a page of it, too", show_default=False)
    ] = None,
    windows: Annotated[int, typer.Option(metavar="N", min=0, help="How many rows to show")] = 3,
    json: options.Json = False,
) -> None:
    """Show what a run would be trained on: sources, lengths, mixture, and the first rows token by token."""
    settings = _load(config, overrides)
    from minigpt import data
    from minigpt.cli.show import print_shown
    from minigpt.config.pace import Pace
    from minigpt.reporting import require_place, write_data_page
    from minigpt.training.setup import make_tokenizer, steps_of

    if html is not None:
        require_place(html, "--html")
    has_length = any((settings.training.max_steps, settings.training.max_tokens, settings.training.epochs))
    with progress_bar() as bar:
        tokenizer = make_tokenizer(settings, bar)
        found = data.describe(
            settings.data,
            tokenizer,
            context_length=settings.model.context_length,
            seed=settings.run.seed,
            batch_rows=settings.batch_rows,
            pace=None if settings.schedule.accumulation is None else Pace(settings),
            steps=(lambda rows: steps_of(settings, rows)) if has_length else None,
            windows=windows,
            on_progress=bar,
        )
    if html is not None:
        write_data_page(found, config, html)
    if json:
        print_json(found)
    else:
        print_shown(found, Console(highlight=False))


def _load(config: str, overrides: list[str] | None) -> Config:
    settings, notes = load_config(config, overrides or [])
    for note in notes:
        say(f"minigpt: {note}")
    return settings


@contextmanager
def _told_how_to_go_on() -> Iterator[None]:
    """Says after Ctrl-C that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        say("minigpt: stopped; the same command goes on where it was")
        raise


def _part(text: str) -> tuple[int, int]:
    """What --part I/N says."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise RequestError(f"--part {text} is not possible: it should be I/N, as 0/3, 1/3 and 2/3 for three parts")
    return int(index), int(count)


def _size(tokens: "TokenDataset") -> dict[str, int]:
    return {"documents": tokens.n_documents, "tokens": len(tokens)}


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
