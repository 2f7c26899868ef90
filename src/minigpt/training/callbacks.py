"""What happens beside the loop: hooks with Lightning's names, and the callbacks that come with minigpt.

A callback may read everything of the trainer. It must not draw from the global random generators nor change the
weights, unless that is its purpose: then what it does must follow from the step alone.
"""

import math
import time
from typing import TYPE_CHECKING, Any

import torch

from minigpt.config import (
    CallbacksConfig,
    CheckpointConfig,
    EarlyStoppingConfig,
    GenerationConfig,
    MonitorConfig,
    RequestError,
    SampleConfig,
)
from minigpt.inference import generate
from minigpt.tokenizer import Tokenizer
from minigpt.training.loggers import Metrics

if TYPE_CHECKING:
    from minigpt.training.trainer import Trainer


class Callback:
    """Override the hooks that you need; `state_dict` is kept in every checkpoint."""

    def on_train_start(self, trainer: "Trainer") -> None:
        """Before the first step (again after a resume or a restoration)."""

    def on_train_batch_start(self, trainer: "Trainer", step: int) -> None:
        """Before the forward pass of `step`."""

    def on_before_optimizer_step(self, trainer: "Trainer") -> None:
        """Gradients are complete and clipped; the update follows."""

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


class Checkpointing(Callback):
    """Saves every so many steps, every so many minutes, and at each new best validation loss."""

    def __init__(self, config: CheckpointConfig) -> None:
        self.config = config
        self._saved_at = time.monotonic()
        self._new_best = False

    def on_train_start(self, trainer: "Trainer") -> None:
        """Minutes count from here."""
        self._saved_at, self._new_best = time.monotonic(), False

    def on_validation_end(self, trainer: "Trainer", metrics: Metrics) -> None:
        """Remember to save, after the other callbacks have had the step."""
        self._new_best = self.config.best and metrics["val/loss"] <= trainer.best_loss

    def on_train_batch_end(self, trainer: "Trainer", step: int) -> None:
        """Save if it is time. Amid bad steps nothing is saved: going back needs the checkpoint before them."""
        due = self.config.every_steps is not None and step % self.config.every_steps == 0
        minutes = (time.monotonic() - self._saved_at) / 60
        due = due or (self.config.every_minutes is not None and minutes >= self.config.every_minutes)
        if (due or self._new_best) and trainer.bad_streak == 0 and step < trainer.max_steps:
            trainer.save_checkpoint()
            self._saved_at, self._new_best = time.monotonic(), False


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
        settings = GenerationConfig(
            max_new_tokens=self.config.max_new_tokens, temperature=self.config.temperature, seed=self.seed
        )
        with trainer.autocast():
            drawn = generate(
                trainer.model,
                self.tokenizer,
                [self._prompt],
                settings,
                should_stop=lambda: trainer.signals.received is not None,
            )
        trainer.signals.check()
        trainer.log_sample(step, self.config.prompt + drawn[0].text)


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
        for name, parameter in trainer.model.named_parameters():
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
    return [*made, Checkpointing(checkpoint)]
