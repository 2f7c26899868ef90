"""`minigpt demo`: from nothing to a model that tells stories, and an honest count of how many of them make sense.

The stories come from a grammar (`minigpt.data.demo`) whose checker accepts exactly the consistent ones. The trained
model and a bigram model of the same tokens tell the same number of stories; both are judged by the checker, and what
either tells is compared with the training text.
"""

import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from minigpt.config import Config, GenerationConfig, SourceConfig, load_config
from minigpt.data import TokenDataset
from minigpt.data.demo import check_story, stories
from minigpt.inference import LoadedModel, generate, load
from minigpt.training.console import duration, printable
from minigpt.training.run import train
from minigpt.training.setup import assemble
from minigpt.training.signals import StopRequested, StopSignals

STORIES = 200  # judged of each model: enough for a share with a standard error of about 2 points
LONGEST = 160  # tokens; no story of the grammar is as long
TEMPERATURES = (0.3, 1.0)  # the first is for show: many names and things are equally likely, so it stays varied
SHOWN = 3
WIDEST = 100  # columns: longer lines are hard to read
SEED = 1


@dataclass(frozen=True)
class Judgement:
    """What the checker says of a model's stories."""

    told: list[str]
    consistent: list[str]
    novel: int
    """How many of the consistent ones are not in the training text."""

    @property
    def share(self) -> float:
        """Accepted by the checker."""
        return len(self.consistent) / len(self.told)


def judge(told: list[str], known: set[str]) -> Judgement:
    """Check each of the stories."""
    consistent = [text for text in told if check_story(text) is None]
    return Judgement(told, consistent, sum(text not in known for text in consistent))


def model_stories(
    loaded: LoadedModel, count: int, temperature: float, should_stop: Callable[[], bool] = lambda: False
) -> list[str]:
    """Stories that the model tells, each from nothing."""
    assert loaded.tokenizer is not None
    settings = GenerationConfig(max_new_tokens=LONGEST, num_samples=count, seed=SEED, temperature=temperature)
    drawn = generate(loaded.model, loaded.tokenizer, [[]], settings, should_stop=should_stop)
    return [one.text.strip() for one in drawn]


def bigram_stories(train: TokenDataset, loaded: LoadedModel, count: int) -> list[str]:
    """Stories of a model that sees one token back: it draws what followed that token somewhere in the training text."""
    tokenizer = loaded.tokenizer
    assert tokenizer is not None and tokenizer.eot_id is not None
    ids = train.tokens(0, len(train)).astype(np.int64)
    size = train.vocab_size
    counts = np.bincount(ids[:-1] * size + ids[1:], minlength=size * size).reshape(size, size)
    sums = counts.cumsum(axis=1)
    random, told = np.random.default_rng(SEED), []
    for _ in range(count):
        story: list[int] = []
        token = tokenizer.eot_id
        while len(story) < LONGEST:
            token = int(np.searchsorted(sums[token], random.integers(sums[token, -1]), side="right"))
            if token == tokenizer.eot_id:
                break
            story.append(token)
        told.append(tokenizer.decode(story).strip())
    return told


def run_demo(out: Path | None = None, on_trained: Callable[[Path], object] = lambda run_dir: None) -> int:
    """Train, tell, judge; returns the exit status.

    out: the run folder (default runs/demo, or the next free one). on_trained gets it once training has ended.
    """
    console = Console(highlight=False)
    console.width = min(console.width, WIDEST)
    began = time.monotonic()
    run_dir = out or _free_folder(Path("runs/demo"))
    config, _ = load_config("demo")
    console.print(
        "[bold]minigpt demo[/]: a tokenizer and a small GPT, trained here and now on stories that minigpt makes up. "
        "Each story keeps its facts straight: who has what, who is where, how many there are. Can a model learn that?\n"
    )
    for story in stories(seed=7, count=2):
        console.print(_boxed(story, "a training story", "dim"))
    console.print()
    result = train(config, run_dir=run_dir)
    on_trained(run_dir)
    console.print(Text(f"{result.message}\n"), soft_wrap=True)
    if result.exit_status:
        return result.exit_status
    with StopSignals() as signals:
        try:
            _report(console, config, run_dir, signals, began)
        except StopRequested:
            return signals.exit_status
    return 0


def _report(console: Console, config: Config, run_dir: Path, signals: StopSignals, began: float) -> None:
    console.print(f"Now it tells {STORIES} stories at each of two temperatures. Do they make sense? The first ones:\n")
    loaded = load(run_dir)
    parts = assemble(config, tokenizer=loaded.tokenizer)
    source = (config.data.train or [])[0]
    assert isinstance(source, SourceConfig)  # as the preset has it
    known = set(stories(seed=source.seed or 0, count=source.documents or 0))
    judged = {}
    for temperature in TEMPERATURES:
        told = model_stories(loaded, STORIES, temperature, lambda: signals.received is not None)
        signals.check()
        judged[f"this GPT, temperature {temperature}"] = judge(told, known)
        if len(judged) == 1:
            for story in told[:SHOWN]:
                console.print(_verdict(story))
    judged["bigram baseline"] = judge(bigram_stories(parts.data.train, loaded, STORIES), known)
    console.print(f"\n{STORIES} stories of each model, judged by the grammar's checker:\n")
    console.print(_table(judged))
    if (report := run_dir / "report.html").exists():
        console.print(Text(f"\nThe curves of the training are in {report}: open it in a browser."), soft_wrap=True)
    console.print(f"\n{duration(time.monotonic() - began)} in all. What you can do next:")
    folder = shlex.quote(str(run_dir))
    minigpt = os.environ.get("MINIGPT_COMMAND", "minigpt")  # start.py says how it was called
    for command in (
        f"generate {folder} --prompt 'One sunny day, Anna' --temperature 0.3 --num-samples 3",
        f"eval {folder} --task perplexity --split val",
        "train demo data.train=my.txt run.name=mine",
        "train --help",
    ):
        console.print(f"  [cyan]{minigpt} {command}[/]", soft_wrap=True)


def _boxed(story: str, title: str, colour: str, remark: str | None = None) -> Panel:
    text = Text(printable(story))
    if remark is not None:
        text.append(f"\n{printable(remark)}", "dim")
    return Panel(text, title=Text(title, colour), title_align="left", border_style=colour)


def _verdict(story: str) -> Panel:
    """A story of the model's, with what the checker says of it."""
    wrong = check_story(story)
    return _boxed(story, "consistent", "green") if wrong is None else _boxed(story, "not consistent", "red", wrong)


def _table(judged: dict[str, Judgement]) -> Table:
    """The shares of all models, one below the other."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("model")
    table.add_column("consistent", justify="right")
    table.add_column("of these not in the training text", justify="right")
    for name, found in judged.items():
        style = "bold green" if found.share > 0.5 else ""
        novel = f"{found.novel} of {len(found.consistent)}"
        table.add_row(name, Text(f"{found.share:.1%}", style), novel)
    return table


def _free_folder(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, ... that does not hold a finished run."""
    number = 1
    found = folder
    while (found / "model").exists():
        number += 1
        found = folder.with_name(f"{folder.name}-{number}")
    return found
