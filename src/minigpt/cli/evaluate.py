"""`minigpt eval` and `minigpt perplexity`: how well a model predicts a text."""

import json as jsonlib
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minigpt.cli import options
from minigpt.cli.models import load_model, run_config
from minigpt.cli.output import print_json, say, write
from minigpt.cli.sources import SOURCE_HELP, progress_bar, source_data
from minigpt.config import RequestError, load_config
from minigpt.config.extension import require_trust

if TYPE_CHECKING:
    from minigpt.data import TokenDataset
    from minigpt.evaluation import TokenLoss
    from minigpt.inference import LoadedModel

BATCH_TOKENS = 8192
"""Tokens that go through the network at once: enough to keep a CPU or GPU busy, little beside the weights."""


class Task(StrEnum):
    """What to measure."""

    loss = "loss"
    perplexity = "perplexity"


class Split(StrEnum):
    """The parts of a run's text."""

    train = "train"
    val = "val"


PerToken = Annotated[bool, typer.Option("--per-token", help="Print each token's loss in nats (task perplexity)")]
Stride = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Slide the window by this many tokens, so that each sees more of what is before it (task perplexity; "
        "default: the context length, the fastest)",
        show_default=False,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Only this many windows of the model's context length (loss: spread evenly; perplexity: the first)",
        show_default=False,
    ),
]


def evaluate(
    model: options.Model,
    task: Annotated[
        Task,
        typer.Option(
            metavar="loss|perplexity",
            help="Both give loss, perplexity and bits per byte; perplexity can go token by token",
        ),
    ] = Task.loss,
    data: Annotated[str | None, typer.Option(metavar="SOURCE", help=SOURCE_HELP, show_default=False)] = None,
    split: Annotated[
        Split | None,
        typer.Option(metavar="train|val", help="A part of the text of the model's own run  [default: val]"),
    ] = None,
    limit: Limit = None,
    per_token: PerToken = False,
    stride: Stride = None,
    json: options.Json = False,
    device: options.Device = options.DEFAULT_DEVICE,
    threads: options.Threads = options.DEFAULT_THREADS,
    trust_code: options.TrustCode = None,
) -> None:
    """Measure a model on a text or on a split of its run's data."""
    if data is not None and split is not None:
        raise RequestError("give only one of --data and --split")
    if task is Task.loss and (per_token or stride is not None):
        option = "--per-token" if per_token else f"--stride={stride}"
        raise RequestError(f"{option} can have no effect with --task loss: leave it out or use --task perplexity")
    if data is not None:
        source_data([data])  # what is wrong with its words is said before the model is loaded
    loaded = load_model(model, device, threads, trust_code)
    dataset = _dataset(loaded, data, split or Split.val, trust_code)
    if task is Task.loss:
        _report(_loss(loaded, dataset, limit), json)
    else:
        _perplexity(loaded, dataset, stride, limit, per_token, json)


def perplexity(
    model: options.Model,
    file: Annotated[str, typer.Argument(metavar="FILE", help=SOURCE_HELP, show_default=False)],
    per_token: PerToken = False,
    stride: Stride = None,
    limit: Limit = None,
    json: options.Json = False,
    device: options.Device = options.DEFAULT_DEVICE,
    threads: options.Threads = options.DEFAULT_THREADS,
    trust_code: options.TrustCode = None,
) -> None:
    """Short for: minigpt eval MODEL --task perplexity --data FILE."""
    evaluate(model, Task.perplexity, file, None, limit, per_token, stride, json, device, threads, trust_code)


def _dataset(loaded: "LoadedModel", source: str | None, split: Split, trust_code: bool | None) -> "TokenDataset":
    """The tokens of a source, or of a split of the run that the model belongs to."""
    from minigpt.data import prepare

    if loaded.tokenizer is None:
        raise RequestError(f"{loaded.path} has no tokenizer, so it cannot read text")
    if source is not None:
        with progress_bar() as bar:
            return prepare(source_data([source]), loaded.tokenizer, on_progress=bar).train
    path = run_config(loaded.path)
    if path is None:
        raise RequestError(
            f"{loaded.path} is in no run folder, so there is no --split {split} of its text: name a text with --data"
        )
    config, _ = load_config(path)
    require_trust([*(config.data.train or []), *(config.data.val or [])], f"the text of {path}", trust_code)
    with progress_bar() as bar:
        prepared = prepare(config.data, loaded.tokenizer, on_progress=bar)
    found = prepared.train if split is Split.train else prepared.val
    if found is None:
        raise RequestError(f"--split {split}: the run of {path} has no validation text: give a text with --data")
    return found


def _loss(loaded: "LoadedModel", dataset: "TokenDataset", limit: int | None) -> dict[str, Any]:
    from minigpt.evaluation import evaluate_loss

    assert loaded.tokenizer is not None
    length = loaded.config.context_length
    rows = max(1, BATCH_TOKENS // length)
    if limit is not None:  # in whole batches
        rows = max(size for size in range(1, min(rows, limit) + 1) if limit % size == 0)
    result = evaluate_loss(
        loaded.model,
        dataset,
        context_length=length,
        batch_rows=rows,
        max_batches=None if limit is None else limit // rows,
        byte_lengths=loaded.tokenizer.byte_lengths(),
    )
    assert result is not None  # only a should_stop ends it early
    return _summary("loss", result.loss, result.perplexity, result.bpb, result.tokens, result.bytes)


def _perplexity(
    loaded: "LoadedModel", dataset: "TokenDataset", stride: int | None, limit: int | None, per_token: bool, json: bool
) -> None:
    from minigpt.evaluation import TokenLoss, score, sequence_losses

    assert loaded.tokenizer is not None
    length = loaded.config.context_length
    count = len(dataset) if limit is None else min(len(dataset), limit * length + 1)
    ids = [int(token) for token in dataset.tokens(0, count)]
    losses = sequence_losses(loaded.model, ids, stride=stride, batch_rows=max(1, BATCH_TOKENS // length))
    assert losses is not None
    scored: list[float | None] = [None, *losses]  # nothing is before the first token
    tokens = [TokenLoss(loaded.tokenizer.decode([i]), nll, i) for i, nll in zip(ids, scored, strict=False)]
    total = score(tokens, loaded.tokenizer)
    found = _summary(
        "perplexity", total["loss"], total["perplexity"], total["bits_per_byte"], total["tokens"], total["bytes"]
    )
    if per_token and json:
        found["per_token"] = [{"id": token.id, "text": token.text, "loss": token.nll} for token in tokens]
    elif per_token:
        _print_tokens(tokens)
    _report(found, json, per_token)


def _summary(
    task: str, loss: float, perplexity: float, bpb: float | None, tokens: int, size: int | None
) -> dict[str, Any]:
    return {"task": task, "loss": loss, "perplexity": perplexity, "bpb": bpb, "tokens": tokens, "bytes": size}


def _print_tokens(tokens: "list[TokenLoss]") -> None:
    """A line for each token: its loss and its text, quoted as in JSON."""
    for token in tokens:
        nll = "-" if token.nll is None else f"{token.nll:.4f}"
        write(f"{nll:>9}  {jsonlib.dumps(token.text, ensure_ascii=False)}\n")


def _report(found: dict[str, Any], json: bool, on_stderr: bool = False) -> None:
    """The numbers, for a program or for a person; on stderr where stdout has lines of its own."""
    if json:
        print_json(found)
        return
    show = say if on_stderr else print
    show(f"loss           {found['loss']:.4f} nats per token")
    show(f"perplexity     {found['perplexity']:.4f}")
    if found["bpb"] is not None:
        show(f"bits per byte  {found['bpb']:.4f}")
    show(f"tokens         {found['tokens']:,}" + (f" ({found['bytes']:,} bytes)" if found["bytes"] else ""))
