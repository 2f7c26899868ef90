"""The state of a run: what a checkpoint keeps of it, saving that, and going on from it.

On several processes each holds a part of the tensors (`Part`). Where one of them holds everything, it saves alone, as
in a run of one process; otherwise all save what they hold, together. Going on, each reads what it holds from whatever
files there are, so that a run may go on with another number of processes or another mesh.
"""

import math
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minigpt.config import RequestError, WorkError
from minigpt.parallel.world import World
from minigpt.storage import Checkpoint, prune, save_checkpoint, save_sharded_checkpoint
from minigpt.storage.parts import Part
from minigpt.storage.tensor_files import TensorFiles
from minigpt.training.callbacks import TENSORS as CALLBACK_TENSORS
from minigpt.training.callbacks import by_name, callback_tensors, load_callback_tensors
from minigpt.training.snapshots import all_finite, copy_to_cpu
from minigpt.training.streams import TENSORS as STREAM_TENSORS
from minigpt.training.streams import load_stream, stream_state, stream_tensors

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from minigpt.training.trainer import Trainer

Held = Mapping[str, tuple[Part, Tensor]]
"""By name, what of each tensor this process holds."""

RAW = "raw:"
"""With an average of the weights, which is what the model part of a checkpoint holds, begins the names of the weights
themselves among the optimizer's tensors."""

SAVING = "saving"
"""The group, in `World.groups`, of the thread that saves."""

SAVING_TIMEOUT = timedelta(hours=1)
"""How long one process may write while another waits for it: disks are slow at times, and training goes on."""


def small_state(trainer: "Trainer") -> dict[str, Any]:
    """Everything of the state but tensors."""
    return {
        "tokens": trainer.tokens,
        "sources": dict(trainer.seen.tokens),
        "stream": trainer.stream.position if trainer.stream is not None else None,
        "elapsed": trainer.elapsed,
        "skipped": trainer.skipped,
        "bad_streak": trainer.bad_streak,
        "first_bad": trainer.first_bad,
        "restorations": trainer.journal.restorations,
        "best_loss": None if math.isinf(trainer.best_loss) else trainer.best_loss,
        "stop_reason": trainer.stop_reason,
        "scaler": trainer.scaler.state_dict(),
        "callbacks": {name: callback.state_dict() for name, callback in by_name(trainer.callbacks).items()},
        "files": trainer.logbook.positions(),
        "settled": True,
    }


def save_state(trainer: "Trainer") -> None:
    """Save the state of the last finished step, in the background if the config says so. Every process must call it."""
    state = small_state(trainer) if trainer.settled else trainer.before | {"settled": False}
    state["data_fingerprint"] = trainer.data_fingerprint
    for callback in trainer.callbacks:
        callback.on_save_checkpoint(trainer, state)
    world = trainer.parallel.world
    spread = is_spread(world)
    weights: Held = {}
    moments: Held = {}
    if spread or world.is_main:  # otherwise the main process has everything that this one has
        weights, moments = _held(trainer)
    step, keep, amid_bad = trainer.step, trainer.config.checkpoint.keep_last, trainer.bad_streak > 0
    if world.sum([not all_finite(_tensors(weights))])[0]:
        raise WorkError(f"the weights at step {step} are not finite; nothing was saved over the last checkpoint")
    evaluated = trainer.settled and trainer.validation is not None and trainer.validation[0] == trainer.step
    loss = trainer.validation[1] if evaluated and trainer.validation else None
    trainer.logbook.sync()  # the checkpoint records their lengths, so what it counts must be as durable as it is
    group = _saving_group(world) if spread else None

    def write() -> None:
        if group is not None:
            save_sharded_checkpoint(
                trainer.run_dir, step, group, model_config=trainer.model.config, model=weights, optimizer=moments,
                trainer_state=state, tokenizer=trainer.tokenizer, loss_for_best=loss,
            )  # fmt: skip
        elif world.is_main:
            save_checkpoint(
                trainer.run_dir, step, model_config=trainer.model.config, model_state=_tensors(weights),
                optimizer_state=_tensors(moments), trainer_state=state, tokenizer=trainer.tokenizer,
                loss_for_best=loss,
            )  # fmt: skip
        if world.is_main and not amid_bad:  # going back needs the checkpoint before the bad steps
            prune(trainer.run_dir, keep, trainer.say)

    trainer.writer.submit(write)
    trainer.saved_step = step


def is_spread(world: World) -> bool:
    """Whether the processes hold pieces of the tensors, so that no single one could save them all."""
    return any(world.sizes[dimension] > 1 for dimension in ("fsdp", "tp", "pp"))


def _saving_group(world: World) -> "ProcessGroup":
    """All processes, over gloo, for the thread that saves: what it says must not mix with what training says."""
    if SAVING not in world.groups:
        import torch.distributed as dist

        world.groups[SAVING] = dist.new_group(backend="gloo", timeout=SAVING_TIMEOUT)
    return world.groups[SAVING]


def _held(trainer: "Trainer") -> tuple[Held, Held]:
    """Copies (CPU) of what this process holds: the model's tensors, and everything else that training needs."""
    parallel = trainer.parallel
    weights = {name: parallel.local(tensor) for name, tensor in parallel.model.state_dict().items()}
    others, parts = trainer.optimizer.tensors(), trainer.optimizer.parts()
    if trainer.average is not None:
        others |= {RAW + name: weights[name] for name in trainer.average.average}
        parts |= {RAW + name: parallel.parts[name] for name in trainer.average.average}
        weights |= trainer.average.average
    if parallel.world.is_main:
        own = callback_tensors(trainer.callbacks) | stream_tensors(trainer.stream)
        others |= own
        parts |= {name: Part.whole(tensor.shape) for name, tensor in own.items()}
    return (
        {name: (parallel.parts[name], tensor) for name, tensor in copy_to_cpu(weights).items()},
        {name: (parts[name], tensor) for name, tensor in copy_to_cpu(others).items()},
    )


def _tensors(held: Held) -> dict[str, Tensor]:
    return {name: tensor for name, (_, tensor) in held.items()}


@torch.no_grad()
def load_state(trainer: "Trainer", checkpoint: Checkpoint) -> None:
    """Go on from a checkpoint, with a trainer that is as new: everything that was saved, the log files cut to it."""
    state = checkpoint.trainer_state
    parallel, files = trainer.parallel, checkpoint.optimizer_state
    averages = {} if trainer.average is None else trainer.average.average
    for name, tensor in parallel.model.state_dict().items():
        saved = _read(checkpoint, checkpoint.model_state, name, parallel.parts[name])
        if name in averages:
            averages[name].copy_(saved)
        if RAW + name in files:
            saved = _read(checkpoint, files, RAW + name, parallel.parts[name])
        parallel.local(tensor).copy_(saved)
    own = {name: files[name] for name in files if name.startswith((CALLBACK_TENSORS, STREAM_TENSORS))}
    load_stream(trainer.objective, state.get("stream"), load_callback_tensors(trainer.callbacks, own))
    trainer.stream = stream_state(trainer.objective)
    parts = trainer.optimizer.parts()
    unknown = [name for name in files if name not in own and name not in parts and not name.startswith(RAW)]
    if unknown and not is_spread(parallel.world):  # otherwise it may be another process's
        raise WorkError(f"{checkpoint.path} is of another optimizer or network: it has the tensor {unknown[0]}")
    moments = {n: _read(checkpoint, files, n, part) for n, part in parts.items() if n in files}
    try:
        trainer.optimizer.load(moments)
    except ValueError as error:
        raise WorkError(f"{checkpoint.path} is of another optimizer or network: {error}") from error
    trainer.step, trainer.tokens, trainer.elapsed_before = checkpoint.step, state["tokens"], state["elapsed"]
    trainer.seen.tokens |= state.get("sources", {})  # a checkpoint of before there were mixtures has none
    trainer.skipped, trainer.bad_streak, trainer.first_bad = state["skipped"], state["bad_streak"], state["first_bad"]
    trainer.best_loss = math.inf if state["best_loss"] is None else state["best_loss"]
    trainer.stop_reason = state["stop_reason"]
    trainer.scaler.load_state_dict(state["scaler"])
    for name, callback in by_name(trainer.callbacks).items():
        callback.load_state_dict(state["callbacks"].get(name) or callback.state_dict())
        callback.on_load_checkpoint(trainer, state)
    trainer.logbook.truncate(state["files"])
    trainer.journal.rewind(trainer.step)
    trainer.settled = state["settled"]
    trainer.saved_step = trainer.step if trainer.settled else None
    for tensors in (checkpoint.model_state, checkpoint.optimizer_state):
        tensors.close()  # the checkpoint may live as long as the run


def refuse_other_optimizer(trainer: "Trainer", origin: Checkpoint) -> None:
    """RequestError unless the trainer's optimizer can go on with the state of the checkpoint that a run begins from."""
    wanted = trainer.optimizer.parts()
    there = {n for n in origin.optimizer_state if not n.startswith((RAW, CALLBACK_TENSORS, STREAM_TENSORS))}
    lacking = [f"lacks {name}" for name in wanted if there and name not in there]
    unknown = [] if is_spread(trainer.parallel.world) else [f"has {name}" for name in sorted(there - wanted.keys())]
    if lacking or unknown:
        raise RequestError(
            f"--resume {origin.path} is of another optimizer (it {(unknown or lacking)[0]}): set the section optimizer "
            "as it was there, or begin with the model's weights alone by model.init_from"
        )


def _read(checkpoint: Checkpoint, files: TensorFiles, name: str, part: Part) -> Tensor:
    """What this process holds of a tensor, from a checkpoint of any layout."""
    if name not in files:
        raise WorkError(f"{checkpoint.path} is of another network: it has no tensor {name}")
    if files.shape(name) != part.shape:
        raise WorkError(
            f"{checkpoint.path} is of another network: {name} has the shape {files.shape(name)} there and "
            f"{part.shape} here"
        )
    if part.is_whole:
        return files[name]
    return part.take(partial(files.read, name), files.read(name, (0,) * len(part.shape), (0,) * len(part.shape)))
