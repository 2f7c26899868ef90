"""`minigpt train` and `minigpt demo`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from minigpt.cli import options
from minigpt.cli.output import print_json, say
from minigpt.config import Config, RequestError, load_config
from minigpt.config.mesh import refuse_mesh, settle_mesh


def train(
    config: options.Config,
    overrides: options.Overrides = None,
    run_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run's folder  [default: runs/NAME]", show_default=False)
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            metavar="auto|never|PATH",
            help="auto goes on with an unfinished run in the run's folder; never refuses a used folder; PATH starts a "
            "new run from that checkpoint",
        ),
    ] = "auto",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the resolved config, size, memory and time, and one batch, then stop"),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="With --dry-run: print it as one JSON object")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, the same as loggers.console=quiet")
    ] = False,
    threads: options.Threads = None,
    nproc: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Train on N processes of this machine, as torchrun would start them"),
    ] = None,
    no_wandb: Annotated[
        bool, typer.Option("--no-wandb", help="No Weights & Biases, the same as loggers.wandb.enabled=false")
    ] = False,
) -> None:
    """Train a model.

    For example: minigpt train shakespeare-char data.train=input.txt
    """
    if json and not dry_run:
        raise RequestError("--json needs --dry-run: a run writes its numbers to metrics.jsonl in its folder")
    if resume not in ("auto", "never") and not Path(resume).exists():
        raise RequestError(f"--resume {resume} is neither auto nor never, nor does such a checkpoint exist")
    chosen = [*(overrides or [])]
    if quiet:
        chosen.append("loggers.console=quiet")
    if threads is not None:
        chosen.append(f"run.threads={threads}")
    if no_wandb:
        chosen.append("loggers.wandb.enabled=false")
    settings, notes = load_config(config, chosen)
    if nproc is not None:
        _refuse_processes(settings, nproc)
        if nproc > 1 and not dry_run:
            _train_on(nproc, [config, *chosen], run_dir, resume)
            return
    for note in notes if os.environ.get("RANK", "0") == "0" else []:  # of several processes the first one speaks
        say(f"minigpt: {note}")

    from minigpt import training  # imports torch: only now that the request is known to make sense
    from minigpt.reporting import report_at_end

    if dry_run:
        if os.environ.get("RANK", "0") != "0":
            return
        plan = training.dry_run(settings, nproc or int(os.environ.get("WORLD_SIZE", "1")))
        if json:
            print_json(plan.as_dict())
        else:
            print(plan.config_yaml.rstrip("\n"), *plan.lines, plan.batch_text, sep="\n")
        return
    result = training.train(settings, run_dir=run_dir, resume=resume)
    if result.is_main:
        report = report_at_end(result.run_dir, say)
        if report is not None:
            say(f"report: {report}")
        if result.message:
            say(result.message)
    if result.exit_status:
        raise typer.Exit(result.exit_status)


def _refuse_processes(settings: Config, nproc: int) -> None:
    """Raises RequestError if these processes are not to be started, before any of them is."""
    if "RANK" in os.environ:
        raise RequestError("--nproc starts the processes itself, and torchrun has started this one: leave one out")
    most = max(64, 4 * (os.cpu_count() or 1))
    if nproc > most:
        raise RequestError(
            f"--nproc {nproc} is more processes than one machine of {os.cpu_count()} cores can run: {most} at most, "
            "and best one for each GPU"
        )
    sizes = settle_mesh(settings, nproc)
    if settings.model.init_from is None:  # otherwise the processes look at that model first
        refuse_mesh(settings, sizes)


def _train_on(nproc: int, request: list[str], run_dir: Path | None, resume: str) -> None:
    """The same command in several processes. request: the config and its overrides."""
    from minigpt.parallel.nproc import run_processes

    where = [] if run_dir is None else [f"--run-dir={run_dir}"]
    status = run_processes(nproc, ["train", *where, f"--resume={resume}", "--", *request])
    if status:
        raise typer.Exit(status)


def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The run's folder  [default: runs/demo, or the next free one]", show_default=False
        ),
    ] = None,
) -> None:
    """Watch a small model learn to tell stories in three minutes."""
    from minigpt.reporting import report_at_end
    from minigpt.training.demo import run_demo

    status = run_demo(out, lambda run_dir: report_at_end(run_dir, say))
    if status:
        raise typer.Exit(status)
