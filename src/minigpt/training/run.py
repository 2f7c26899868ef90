"""`minigpt train`: a run folder from its config to its finished model, or from where it stopped."""

import contextlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from minigpt.config import Config, RequestError, resolved
from minigpt.config.extension import portable
from minigpt.config.pace import Pace
from minigpt.model.count import count_parameters
from minigpt.objectives import Objective
from minigpt.parallel.agreement import everywhere, in_turn, on_main, require_same
from minigpt.parallel.failures import watched
from minigpt.parallel.launch import end_world, start_world
from minigpt.parallel.parallel import Parallel
from minigpt.parallel.world import World
from minigpt.storage import (
    Checkpoint,
    atomic_folder,
    clean_run,
    list_checkpoints,
    load_checkpoint,
    lock_folder,
    newest_good,
    open_checkpoint,
    save_checkpoint,
    save_model,
    verify_folder,
)
from minigpt.storage.checkpoint import CHECKPOINTS, POINTERS, resolve_pointer, step_name
from minigpt.tokenizer import Tokenizer, load_tokenizer
from minigpt.training.callbacks import Callback, make_callbacks
from minigpt.training.console import ConsoleLogger, duration, make_console
from minigpt.training.environment import record, versions
from minigpt.training.histograms import Histograms
from minigpt.training.journal import RowJournal
from minigpt.training.loggers import Logger, make_loggers
from minigpt.training.network import OF_THE_RUN
from minigpt.training.resume import agreed, newest_on_path, read_config, refuse_changes, write_config
from minigpt.training.setup import Parts, Progress, assemble
from minigpt.training.signals import StopRequested, StopSignals
from minigpt.training.state import refuse_other_optimizer
from minigpt.training.streams import refuse_gone_by
from minigpt.training.trainer import Trainer

RESERVED = (".lock",)

ECHO_SECONDS = 3.0
"""Within which a signal comes to a process of several more than once: from the terminal, and from torchrun."""


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    run_dir: Path
    exit_status: int
    """0, or 130 / 143 when SIGINT / SIGTERM stopped it (everything is saved)."""
    message: str
    """One sentence for people."""
    is_main: bool = True
    """Whether this is the process that speaks for all."""


def train(
    config: Config,
    *,
    run_dir: Path | None = None,
    resume: str = "auto",
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    console: ConsoleLogger | None = None,
) -> Result:
    """Train a model, in RUN = `run_dir` or runs/<run.name>, to RUN/model.

    resume: `auto` goes on with an unfinished run of the same config; `never` refuses a used folder; a path starts a new
    run from that checkpoint's full state. callbacks and loggers come besides those of the config.
    Raises RequestError for a wrong request and WorkError for failed work.
    """
    run_dir = run_dir or Path("runs") / (config.run.name or "run")
    world = start_world(config)
    try:
        with watched(world, config.distributed.timeout_seconds):
            asked = {"--run-dir": str(run_dir), "--resume": resume} | versions()
            require_same(world, asked, "start all of them by the same command, with the same installation")
            result = _train_in(world, config, run_dir, resume, callbacks, loggers, console)
            world.ends_together = True
            return result
    finally:
        if world.ends_together:
            end_world(world)


def _train_in(
    world: World,
    config: Config,
    run_dir: Path,
    resume: str,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
    console: ConsoleLogger | None,
) -> Result:
    if not world.is_main:  # the main process says all that there is to say
        console = ConsoleLogger()
        logging.getLogger("minigpt").setLevel(logging.ERROR)
    console = console or make_console(config.loggers.console)
    own = everywhere(world, lambda: make_loggers(config.loggers, console.message) if world.is_main else [])
    loggers = [*own, *loggers] if world.is_main else []
    fresh_folder = world.is_main and not run_dir.exists()
    with StopSignals(ECHO_SECONDS if world.size > 1 else 0.0) as signals:
        try:
            with contextlib.ExitStack() as held:
                on_main(world, lambda: _hold(run_dir, held, console))
                return _train_locked(world, config, run_dir, resume, callbacks, loggers, console, signals)
        except StopRequested:
            saved = (
                f"saved in {run_dir}; the same command goes on"
                if (run_dir / "checkpoints").exists()
                else "nothing to save yet"
            )
            return Result(run_dir, signals.exit_status, f"stopped: {saved}", world.is_main)
        except RequestError:
            if fresh_folder and not (run_dir / "config.yaml").exists():  # what there is of it is no run
                shutil.rmtree(run_dir, ignore_errors=True)
            raise
        finally:
            console.close()
            if fresh_folder and not _used(run_dir):  # a request that failed at once leaves nothing behind
                with contextlib.suppress(OSError):
                    shutil.rmtree(run_dir)


def _hold(run_dir: Path, held: contextlib.ExitStack, console: ConsoleLogger) -> None:
    """Lock the folder until `held` is closed, and put it in order."""
    held.enter_context(lock_folder(run_dir))
    clean_run(run_dir, console.message)


def _train_locked(
    world: World,
    config: Config,
    run_dir: Path,
    resume: str,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
    console: ConsoleLogger,
    signals: StopSignals,
) -> Result:
    saved, begun = everywhere(world, lambda: _look(run_dir, resume))
    origin = None if resume in ("auto", "never") else agreed(world, lambda: _load_origin(Path(resume)))
    tokenizer = everywhere(world, lambda: _own_tokenizer(run_dir, begun, origin))
    progress = _progress(console, signals)

    def assembled(config: Config) -> Parts:
        return in_turn(
            world, lambda: assemble(config, saved=saved, tokenizer=tokenizer, on_progress=progress, world=world)
        )

    parts = assembled(config)
    rows = world.collect(parts.config.training.micro_batch)
    if config.training.micro_batch == "auto" and len(set(rows)) > 1:  # they have unequally much memory
        parts = assembled(_with_rows(config, min(rows)))
    found = {"the text": parts.data_fingerprint, "max_steps": parts.max_steps, "config": resolved(parts.config)}
    require_same(world, found, "give all of them the same files")
    if saved is not None:
        everywhere(world, lambda: refuse_changes(run_dir, saved, parts.config, console.message))
        if (run_dir / "model").exists():
            everywhere(world, lambda: verify_folder(run_dir / "model") if world.is_main else None)
            message = f"the run in {run_dir} is finished: its model is {run_dir / 'model'}"
            return Result(run_dir, 0, message, world.is_main)
    objective = everywhere(world, lambda: _objective(parts, origin, saved is None))
    network = parts.parallel(world)
    trainer = everywhere(
        world, lambda: _make_trainer(parts, network, objective, run_dir, callbacks, loggers, console, signals)
    )
    if saved is None and origin is not None:
        everywhere(world, lambda: refuse_other_optimizer(trainer, origin))
        on_main(world, lambda: _adopt(run_dir, origin, parts))
        trainer.read_journal()
    on_main(world, lambda: _begin(run_dir, parts, begun, saved is None))
    checkpoint = newest_on_path(run_dir, trainer.journal, console.message, world)
    if checkpoint is not None:
        everywhere(world, lambda: _refuse_other_data(run_dir, checkpoint, parts))
        console.message(f"going on from step {checkpoint.step} of {parts.max_steps} in {run_dir}")
    else:
        console.message(_headline(parts, run_dir, world))
    step = checkpoint.step if checkpoint else 0
    on_main(world, lambda: record(run_dir, step, parts.max_steps, parts.device, world.size))
    console.watch(trainer)
    trainer.fit(checkpoint)
    on_main(world, lambda: _keep_model(run_dir, trainer))
    why = f" ({trainer.stop_reason})" if trainer.stop_reason else ""
    loss = f", validation loss {trainer.validation[1]:.4f}" if trainer.validation else ""
    message = f"trained {trainer.step} steps in {duration(trainer.elapsed)}{why}{loss}: {run_dir / 'model'}"
    return Result(run_dir, 0, message, world.is_main)


def _look(run_dir: Path, resume: str) -> tuple[Config | None, bool]:
    """The config of the run that is in the folder, and whether that run has begun. RequestError if it may not go on."""
    saved = read_config(run_dir) if (run_dir / "config.yaml").exists() else None
    if resume == "never" and _used(run_dir):
        raise RequestError(
            f"run folder {run_dir} is in use already: choose another --run-dir, or leave out --resume never"
        )
    if resume not in ("auto", "never") and saved is not None:
        raise RequestError(
            f"run folder {run_dir} has a run already: --resume PATH starts a new one, so choose another --run-dir"
        )
    if saved is None and resume in ("auto", "never") and (run_dir / "checkpoints").exists():
        raise RequestError(
            f"run folder {run_dir} has checkpoints but no config.yaml: put it back or choose another --run-dir"
        )
    # Killed before its first checkpoint, a run starts over, with the tokenizer of the text as it is by now.
    return saved, saved is not None and (bool(list_checkpoints(run_dir)) or (run_dir / "model").exists())


def _with_rows(config: Config, rows: int) -> Config:
    return config.model_copy(update={"training": config.training.model_copy(update={"micro_batch": rows})})


def _objective(parts: Parts, origin: Checkpoint | None, first: bool) -> Objective:
    """The objective. RequestError if it cannot go on from the checkpoint that the run is to start from."""
    if origin is not None:
        _refuse_other_network(origin, parts)
    objective = parts.objective()
    if first and origin is not None:
        next_row = RowJournal(_journal_of(origin)).rows(Pace(parts.config).first_row(origin.step + 1), 1)[0]
        refuse_gone_by(objective, origin.trainer_state.get("stream"), next_row)
    return objective


def _begin(run_dir: Path, parts: Parts, begun: bool, first: bool) -> None:
    """What a run's folder holds from its beginning on."""
    if not begun:
        with atomic_folder(run_dir / "tokenizer", replace=True) as folder:  # a start that was killed may have left one
            parts.tokenizer.save(folder)
    if first:
        write_config(run_dir, parts.config)  # last: with it the folder holds a run


def _keep_model(run_dir: Path, trainer: Trainer) -> None:
    """The finished model: that of the checkpoint that was saved last."""
    if not (run_dir / "model").exists():
        last = open_checkpoint(run_dir / CHECKPOINTS / step_name(trainer.step))
        save_model(run_dir / "model", trainer.model.config, last.model_state, trainer.tokenizer)


def _make_trainer(
    parts: Parts,
    network: Parallel,
    objective: Objective,
    run_dir: Path,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
    console: ConsoleLogger,
    signals: StopSignals,
) -> Trainer:
    config = parts.config
    own = make_callbacks(config.callbacks, config.checkpoint, parts.tokenizer, config.run.seed)
    own.insert(0, Histograms(config.loggers.histograms_every_steps))
    return Trainer(
        config,
        network,
        objective,
        run_dir=run_dir,
        max_steps=parts.max_steps,
        device=parts.device,
        tokenizer=parts.tokenizer,
        callbacks=[*own[:-1], *callbacks, own[-1]],  # checkpoints come last, so that they hold what the others did
        loggers=loggers,
        console=console,
        signals=signals,
        data_fingerprint=parts.data_fingerprint,
        initialise=parts.initialise,
    )


def _used(run_dir: Path) -> bool:
    return run_dir.exists() and any(path.name not in RESERVED for path in run_dir.iterdir())


def _own_tokenizer(run_dir: Path, begun: bool, origin: Checkpoint | None) -> Tokenizer | None:
    """The tokenizer that the run (or the checkpoint that it starts from) already has."""
    if begun and (run_dir / "tokenizer").exists():
        verify_folder(run_dir / "tokenizer")
        return load_tokenizer(run_dir / "tokenizer")
    if origin is not None and origin.tokenizer_path is not None:
        return load_tokenizer(origin.path)
    return None


def _load_origin(path: Path) -> Checkpoint:
    """The checkpoint to start from: a checkpoint folder, or the newest of a run folder."""
    if (path / CHECKPOINTS).is_dir():
        newest = newest_good(path)
        if newest is None:
            raise RequestError(f"--resume {path}: this run has no usable checkpoint")
        path = newest
    elif path.name in POINTERS and path.parent.name == CHECKPOINTS and path.is_file():
        path = resolve_pointer(path)
    return load_checkpoint(path)


def _refuse_other_network(origin: Checkpoint, parts: Parts) -> None:
    wanted, given = portable(parts.config.model.model_dump()), portable(origin.model_config.model_dump())
    differing = [
        f"model.{k} is {given[k]} there and {wanted[k]} here"
        for k in wanted
        if wanted[k] != given[k] and k not in OF_THE_RUN
    ]
    if differing:
        raise RequestError(f"--resume {origin.path} is of another network: {', '.join(differing)}")
    if origin.step >= parts.max_steps:
        raise RequestError(
            f"--resume {origin.path} is at step {origin.step}, and the run ends at {parts.max_steps}: raise it"
        )


def _adopt(run_dir: Path, origin: Checkpoint, parts: Parts) -> None:
    """Make `origin` the first checkpoint of a new run: its full state, with log files that begin here."""
    journal = _journal_of(origin)
    state = origin.trainer_state | {
        "restorations": RowJournal(journal).restorations,  # none of them goes back behind the start of this run
        "files": {},
        "data_fingerprint": parts.data_fingerprint,
    }
    save_checkpoint(
        run_dir, origin.step, model_config=parts.config.model, model_state=origin.model_state,
        optimizer_state=origin.optimizer_state, trainer_state=state, tokenizer=parts.tokenizer,
        loss_for_best=origin.loss,
    )  # fmt: skip
    if journal.exists():
        shutil.copyfile(journal, run_dir / "skipped.jsonl")


def _journal_of(origin: Checkpoint) -> Path:
    """The journal of the run that a checkpoint is from."""
    return origin.path.parent.parent / "skipped.jsonl"


def _refuse_other_data(run_dir: Path, checkpoint: Checkpoint, parts: Parts) -> None:
    if checkpoint.trainer_state["data_fingerprint"] != parts.data_fingerprint:
        raise RequestError(
            f"the text of data.train or data.val is not what the run in {run_dir} was trained on: "
            "bring it back (in the same shards, if they are given), or choose another --run-dir or run.name"
        )


def _headline(parts: Parts, run_dir: Path, world: World) -> str:
    config, data = parts.config, parts.data
    tokens = "training text streamed" if data.stream is not None else f"training tokens {len(data.train):,}"
    validation = f", validation {len(data.val):,}" if data.val is not None else ""
    where = f"{config.run.device}, {_count(torch.get_num_threads(), 'thread')}"
    if world.size > 1:
        mesh = ", ".join(f"{name}: {size}" for name, size in world.sizes.items() if size > 1)
        where = f"{world.size} processes {{{mesh}}}, each {where}"
    sizes = sorted({Pace(config).batch_rows(step) * config.model.context_length for step in (1, parts.max_steps)})
    batch_tokens = " to ".join(f"{size:,}" for size in sizes)
    return (
        f"{run_dir}: {count_parameters(config.model) / 1e6:.2f}M parameters, vocabulary {config.model.vocab_size:,}, "
        f"{tokens}{validation}; {parts.max_steps:,} steps of {batch_tokens} tokens "
        f"({config.training.precision}, {where})"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _progress(console: ConsoleLogger, signals: StopSignals) -> Progress:
    """Reports what takes long before training begins, and lets a signal end it."""

    def report(stage: str, done: int, total: int | None) -> None:
        signals.check()
        if stage != "tokens":  # their number; `tokenize` says how far it is
            console.progress(stage, done, total, "bytes" if stage in ("download", "tokenize") else "characters")

    return report
