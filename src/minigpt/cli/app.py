"""The command line as a whole: which commands there are. Importing it, and `--help`, needs no torch."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from minigpt.cli import data, evaluate, exchange, generate, merge, plan, report, tokenizer, train, tune
from minigpt.cli.config_help import ConfigCommand
from minigpt.cli.help import CONTEXT, Command, Group

app = typer.Typer(
    cls=Group,
    help="Train a small language model, from its tokenizer to its samples, on a laptop or a GPU.",
    epilog="Begin with: minigpt demo",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            print(f"minigpt {installed_version('minigpt')}")
        except PackageNotFoundError:
            print("minigpt (not installed: run from its source)")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What stands before every command."""


app.command("demo", cls=Command)(train.demo)
app.command("train", cls=ConfigCommand)(train.train)
app.command("plan", cls=Command)(plan.plan)
app.command("generate", cls=Command)(generate.generate)
app.command("eval", cls=Command)(evaluate.evaluate)
app.command("perplexity", cls=Command)(evaluate.perplexity)
app.command("report", cls=Command)(report.report)
app.command("import", cls=Command)(exchange.import_)
app.command("export", cls=Command)(exchange.export)
app.command("merge", cls=Command)(merge.merge)
app.add_typer(tokenizer.app, name="tokenizer", cls=Group)
app.add_typer(data.app, name="data", cls=Group)
app.add_typer(tune.app, name="tune", cls=Group)
