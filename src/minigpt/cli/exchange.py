"""`minigpt import` and `minigpt export`: models of other programs become ours, and ours theirs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from minigpt.cli import options
from minigpt.cli.output import say
from minigpt.config import RequestError

Format = Literal["hf", "gguf", "llama2c"]
FolderNumbers = Literal["fp32", "bf16", "fp16"]
FileNumbers = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]


def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A Hugging Face folder or a model's name on its hub, a GGUF file, llama2.c's .bin, nanoGPT's ckpt.pt",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Model folder to write", show_default=False)],
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Its tokenizer, as `minigpt tokenizer` takes it  [default: the source's]"),
    ] = None,
    context_length: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Crop or extend the context  [default: the source's]")
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Cut or add token ids  [default: the source's]")
    ] = None,
    vocab_multiple: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Pad the embedding rows to a multiple of this")
    ] = None,
) -> None:
    """Make a model folder of another program's model.

    For example: minigpt import gpt2 models/gpt2
    """
    from minigpt.interop import import_model

    import_model(
        source,
        out,
        tokenizer=tokenizer,
        context_length=context_length,
        vocab_size=vocab_size,
        vocab_multiple=vocab_multiple,
        log=lambda line: say(f"minigpt: {line}"),
    )
    say(f"model: {out}")


def export(
    model: options.Model,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="Folder to write, or one file: NAME.gguf, or NAME.bin of llama2c", show_default=False
        ),
    ],
    format: Annotated[
        Format,
        typer.Option(metavar="hf|gguf|llama2c", help="Hugging Face transformers, llama.cpp (and Ollama), or llama2.c"),
    ] = "hf",
    dtype: Annotated[
        FolderNumbers | None,
        typer.Option(metavar="fp32|bf16|fp16", help="Numbers of a Hugging Face folder  [default: fp32]"),
    ] = None,
    type: Annotated[
        FileNumbers | None,
        typer.Option(metavar="f32|f16|bf16|q8_0|q4_0", help="Numbers of a GGUF file  [default: f32]"),
    ] = None,
    trust_code: options.TrustCode = None,
) -> None:
    """Write a model for another program, and verify it by its logits.

    For example: minigpt export runs/shakespeare-char out/shakespeare
    """
    if type is not None and format != "gguf":
        raise RequestError(f"--type={type} is for --format gguf: for {format} say --dtype")
    if dtype is not None and format == "gguf":
        raise RequestError(f"--dtype={dtype} is not for --format gguf: say --type")

    from minigpt.interop.exporting import export_model, open_source, require_free

    def log(line: str) -> None:
        say(f"minigpt: {line}")

    require_free(out)
    written = export_model(open_source(model, trust_code, log), out, format, type or dtype, log)
    say(f"exported: {written}")
