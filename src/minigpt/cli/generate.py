"""`minigpt generate`: text from a model, as it comes."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minigpt.cli import options
from minigpt.cli.models import load_model
from minigpt.cli.output import UNPRINTABLE, one_of, print_json, read_text, write
from minigpt.config import GenerationConfig

if TYPE_CHECKING:
    from minigpt.inference import LoadedModel


@options.section_options(GenerationConfig, "generation")
def generate(
    model: options.Model,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Text that the model continues  [default: the beginning of a text]"),
    ] = None,
    prompt_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Read the prompt from a file, to the letter; - is stdin")
    ] = None,
    *,
    generation: GenerationConfig,
    json: options.Json = False,
    device: options.Device = options.DEFAULT_DEVICE,
    threads: options.Threads = options.DEFAULT_THREADS,
    trust_code: options.TrustCode = None,
) -> None:
    """Generate text from a model."""
    if prompt is not None or prompt_file is not None:
        one_of({"--prompt": prompt, "--prompt-file": prompt_file})
    text = read_text(prompt_file, "--prompt-file") if prompt_file is not None else prompt or ""

    loaded = load_model(model, device, threads, trust_code)
    values = generation.model_dump()
    if generation.num_samples == 1 and not json:
        _stream(loaded, text, values)
        return
    result = loaded.generate(text, **values)
    samples = result if isinstance(result, list) else [result]
    if json:
        found = [{"text": s.text, "ids": s.ids, "finish_reason": s.finish_reason} for s in samples]
        print_json(found if isinstance(result, list) else found[0])
        return
    for number, sample in enumerate(samples, start=1):
        print(f"--- sample {number} of {len(samples)} ---")
        write(sample.text + "\n")


def _stream(loaded: "LoadedModel", prompt: str, values: dict[str, Any]) -> None:
    """Each piece of text as soon as it is certain. A terminal shows the prompt before it, dim."""
    deltas = loaded.stream(prompt, **values)
    if sys.stdout.isatty() and prompt:
        write_dim(prompt)
    last = ""
    try:
        for delta in deltas:
            write(delta)
            last = delta
    finally:  # also when interrupted: what comes next on the terminal begins a line of its own
        if not last.endswith("\n"):
            write("\n")


def write_dim(text: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(highlight=False).print(Text(text.translate(UNPRINTABLE), style="dim"), end="", soft_wrap=True)
