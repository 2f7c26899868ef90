"""What happens beside the loop: hooks with Lightning's names, and the callbacks that come with minigpt.

A callback may read everything of the trainer. It must not draw from the global random generators nor change the
weights, unless that is its purpose: then what it does must follow from the step alone.

One of your own is named in the config, `callbacks.own=[{kind: path/to/file.py:Class, ...}]`, and is made from its
options alone: `Class(config)`. What it must remember when a run is stopped is its state.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minigpt.config import (
    CallbacksConfig,
    CheckpointConfig,
    EarlyStoppingConfig,
    GenerationConfig,
    MonitorConfig,
    RequestError,
    SampleConfig,
)
from minigpt.config.extension import build
from minigpt.inference import generate
from minigpt.model import GPT
from minigpt.tokenizer import Tokenizer
from minigpt.training.loggers import Metrics
from minigpt.training.whole import whole_model, whole_of

if TYPE_CHECKING:
    from minigpt.training.trainer import Trainer

TENSORS = "callback:"  # begins the names of callbacks' tensors among the optimizer's


class Callback:
    """Override the hooks that you need; `state_dict` and `tensors` are kept in every checkpoint.

    Of a run on several processes each has the callbacks, and calls them alike: `trainer.world` says which one this is,
    and what is logged counts on the main one. Whatever all must do together (saving, evaluating) all must decide alike.

    A run may be stopped between any two hooks. Change `state_dict` in `on_train_batch_end` or in the validation hooks:
    what followed a step that was interrupted is undone and done again. Change `tensors` in `on_before_optimizer_step`:
    they are saved as they are, and an update follows it at once.
    """

    def on_train_start(self, trainer: "Trainer") -> None:
        """Before the first step (again after a resume or a restoration)."""

    def on_train_batch_start(self, trainer: "Trainer", step: int) -> None:
        """Before the forward pass of `step`."""

    def on_before_optimizer_step(self, trainer: "Trainer") -> None:
        """Gradients are complete; the update follows, with `trainer.gradient_factor` times them (which clips)."""

    def on_train_batch_end(self, trainer: "Trainer", step: int) -> None:
        """After the step, its metrics and its evaluation, whether its update was made or skipped."""

    def on_validation_start(self, trainer: "Trainer") -> None:
        """Before an evaluation."""

    def on_validation_end(self, trainer: "Trainer", metrics: Metrics) -> None:
        """After an evaluation; `metrics` has val/loss."""

    def on_save_checkpoint(self, trainer: "Trainer", state: dict[str, Any]) -> None:
        """`state` (plain JSON values) is about to be saved and may be added to."""

    def on_load_checkpoint(self, trainer: "Trainer", state: dict[str, Any]) -> None:
        """`state` was loaded."""

    def on_exception(self, trainer: "Trainer", error: BaseException) -> None:
        """Training ends with this error."""

    def on_train_end(self, trainer: "Trainer") -> None:
        """After the last step."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback (plain JSON values)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""

    def tensors(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint keeps of this callback."""
        return {}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Continue with the tensors of a checkpoint, which are on the CPU."""


def by_name(callbacks: Sequence[Callback]) -> dict[str, Callback]:
    """Each callback by the name of its state: its class, with a number behind it for the second of a class, ..."""
    found: dict[str, Callback] = {}
    for callback in callbacks:
        name = type(callback).__name__
        same = sum(key.partition("#")[0] == name for key in found)
        found[f"{name}#{same + 1}" if same else name] = callback
    return found


def callback_tensors(callbacks: Sequence[Callback]) -> dict[str, Tensor]:
    """The tensors of all callbacks, by names that no parameter has."""
    return {
        f"{TENSORS}{name}/{key}": tensor
        for name, callback in by_name(callbacks).items()
        for key, tensor in callback.tensors().items()
    }


def load_callback_tensors(callbacks: Sequence[Callback], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the callbacks what `callback_tensors` gave; returns the other tensors."""
    for name, callback in by_name(callbacks).items():
        prefix = f"{TENSORS}{name}/"
        callback.load_tensors({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(TENSORS)}


class Checkpointing(Callback):
    """Saves every so many steps, every so many minutes, and at each new best validation loss."""

    def __init__(self, config: CheckpointConfig) -> None:
        self.config = config
        self._saved_at = 0.0
        self._new_best = False

    def on_train_start(self, trainer: "Trainer") -> None:
        """Minutes count from here."""
        self._saved_at, self._new_best = trainer.now, False

    def on_validation_end(self, trainer: "Trainer", metrics: Metrics) -> None:
        """Remember to save, after the other callbacks have had the step."""
        self._new_best = self.config.best and metrics["val/loss"] <= trainer.best_loss

    def on_train_batch_end(self, trainer: "Trainer", step: int) -> None:
        """Save if it is time. Amid bad steps nothing is saved: going back needs the checkpoint before them."""
        due = self.config.every_steps is not None and step % self.config.every_steps == 0
        minutes = (trainer.now - self._saved_at) / 60
        due = due or (self.config.every_minutes is not None and minutes >= self.config.every_minutes)
        if (due or self._new_best) and trainer.bad_streak == 0 and step < trainer.max_steps:
            trainer.save_checkpoint()
            self._saved_at, self._new_best = trainer.now, False


class Samples(Callback):
    """Writes text while training, to the loggers and to `samples.jsonl`, so that one can watch the model learn."""

    def __init__(self, config: SampleConfig, tokenizer: Tokenizer, seed: int) -> None:
        self.config, self.tokenizer, self.seed = config, tokenizer, seed
        try:
            self._prompt = [] if config.every_steps is None else tokenizer.encode(config.prompt)
        except RequestError as error:  # now, and not when the first sample is due
            raise RequestError(f"callbacks.sample.prompt={config.prompt!r} cannot be encoded: {error}") from error

    def on_train_batch_end(self, trainer: "Trainer", step: int) -> None:
        """Draw a sample if it is time."""
        if self.config.every_steps is None or (step % self.config.every_steps and step != trainer.max_steps):
            return
        with trainer.averaged():
            model = whole_model(trainer)
            text = "" if model is None else self._draw(trainer, model)
        trainer.check_signals()
        trainer.log_sample(step, self.config.prompt + text)

    def _draw(self, trainer: "Trainer", model: GPT) -> str:
        settings = GenerationConfig(
            max_new_tokens=self.config.max_new_tokens, temperature=self.config.temperature, seed=self.seed
        )
        with trainer.autocast(model.embed.weight.device):
            drawn = generate(
                model,
                self.tokenizer,
                [self._prompt],
                settings,
                should_stop=lambda: trainer.signals.received is not None,
            )
        return drawn[0].text


class EarlyStopping(Callback):
    """Ends the run when the validation loss has not fallen for `patience` evaluations."""

    def __init__(self, config: EarlyStoppingConfig) -> None:
        self.config = config
        self.best, self.waited = math.inf, 0

    def on_validation_end(self, trainer: "Trainer", metrics: Metrics) -> None:
        """Count evaluations without a better loss."""
        if self.config.patience is None:
            return
        if metrics["val/loss"] < self.best - self.config.min_delta:
            self.best, self.waited = metrics["val/loss"], 0
            return
        self.waited += 1
        if self.waited >= self.config.patience:
            trainer.stop(f"the validation loss has not fallen for {self.waited} evaluations")

    def state_dict(self) -> dict[str, Any]:
        """The best loss and how long ago it was."""
        return {"best": None if math.isinf(self.best) else self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue counting."""
        self.best = math.inf if state["best"] is None else state["best"]
        self.waited = state["waited"]


class Monitor(Callback):
    """Logs the norm of the weights by part of the network."""

    def __init__(self, config: MonitorConfig) -> None:
        self.config = config

    @torch.no_grad()
    def on_train_batch_end(self, trainer: "Trainer", step: int) -> None:
        """Measure if it is time."""
        if self.config.every_steps is None or step % self.config.every_steps:
            return
        squares: dict[str, float] = {}
        for name, parameter in whole_of(trainer.parallel, dict(trainer.model.named_parameters())):
            part = ".".join(piece for piece in name.split(".")[:-1] if not piece.isdigit()) or name
            squares[part] = squares.get(part, 0.0) + float(parameter.double().square().sum())
        trainer.log({f"monitor/weight_norm/{part}": math.sqrt(value) for part, value in squares.items()})


def make_callbacks(
    callbacks: CallbacksConfig, checkpoint: CheckpointConfig, tokenizer: Tokenizer | None, seed: int
) -> list[Callback]:
    """The config's callbacks in the order in which they run; saving comes last, to hold what the others did."""
    made: list[Callback] = [Monitor(callbacks.monitor), EarlyStopping(callbacks.early_stopping)]
    if tokenizer is not None:
        made.append(Samples(callbacks.sample, tokenizer, seed))
    made += [build(own, Callback, f"callbacks.own.{i}") for i, own in enumerate(callbacks.own)]
    return [*made, Checkpointing(checkpoint)]
