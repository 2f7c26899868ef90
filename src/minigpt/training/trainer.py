"""The loop: every stage of a model's life runs through it, whatever its objective.

A run is a pure function of its config. The rows of a step follow from (seed, step, skip journal); dropout is reseeded
from (seed, step, micro-batch); evaluation and samples draw from generators of their own. So the state of a run is
small: weights, optimizer moments, the loss scale, a few counters, and how long its log files are.

A step whose loss or gradient is not finite makes no update: it is counted and journalled. After `max_bad_steps` of
them in a row the run goes back to the last checkpoint before them and goes on without their rows; after
`max_restores` of that it stops with a report.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from minigpt.config import Config, WorkError
from minigpt.data import Prefetcher
from minigpt.data.streaming.stream import StreamState
from minigpt.model import GPT
from minigpt.objectives import Batch, Objective
from minigpt.optim import learning_rate, load_optimizer_tensors, make_optimizer, optimizer_tensors
from minigpt.storage import Checkpoint, prune, save_checkpoint
from minigpt.tokenizer import Tokenizer
from minigpt.training.batches import StepBatch, step_batch
from minigpt.training.callbacks import Callback, by_name, callback_tensors, load_callback_tensors
from minigpt.training.journal import RowJournal
from minigpt.training.loggers import Histogram, LogBook, Logger, Metrics
from minigpt.training.precision import LossScaler, autocast
from minigpt.training.resume import discard_later, last_good_before
from minigpt.training.seeds import seed_step
from minigpt.training.signals import StopRequested, StopSignals
from minigpt.training.snapshots import BackgroundWriter, all_finite, copy_to_cpu
from minigpt.training.sources import SeenSources
from minigpt.training.streams import close_stream, load_stream, stream_state, stream_tensors
from minigpt.training.telemetry import Speedometer, peak_flops, peak_memory_mb
from minigpt.training.validation import validate, validation_sets


class _Restore(Exception):
    """Raised inside the loop when too many steps in a row were bad."""


class Trainer:
    """Trains `model` on `objective` in the run folder `run_dir`, which the caller holds the lock of.

    config: resolved (device, threads and micro-batch are numbers). `initialise` gives the model its first weights; it
    is called again when bad steps come before the first checkpoint.
    """

    def __init__(
        self,
        config: Config,
        model: GPT,
        objective: Objective,
        *,
        run_dir: Path,
        max_steps: int,
        device: torch.device,
        tokenizer: Tokenizer | None = None,
        callbacks: Sequence[Callback] = (),
        loggers: Sequence[Logger] = (),
        console: Logger | None = None,
        signals: StopSignals | None = None,
        data_fingerprint: str = "",
        initialise: Callable[[GPT], None] | None = None,
    ) -> None:
        self.config, self.model, self.objective, self.device = config, model, objective, device
        self.network: nn.Module = model
        if config.training.compile:
            model.compile_blocks()
        self.run_dir, self.max_steps, self.tokenizer = run_dir, max_steps, tokenizer
        self.callbacks, self.logbook = list(callbacks), LogBook(run_dir, loggers, console)
        self.signals = signals or StopSignals()
        self.data_fingerprint = data_fingerprint
        self._initialise = initialise or (lambda model: None)
        self.micro_batch = cast(int, config.training.micro_batch)
        self.journal = RowJournal(run_dir / "skipped.jsonl")
        self.writer = BackgroundWriter(config.checkpoint.background)
        self.speed = Speedometer(model.flops_per_token(), partial(peak_flops, device, config.training.precision))
        self._fresh_callbacks = copy.deepcopy([callback.state_dict() for callback in self.callbacks])
        self._reset()

    def _start_over(self) -> None:
        """Step 0: first weights, and nothing of what a run killed before its first checkpoint left in the files."""
        self._initialise(self.model)
        load_stream(self.objective, None, {})
        self._reset()
        for callback, state in zip(self.callbacks, copy.deepcopy(self._fresh_callbacks), strict=True):
            callback.load_state_dict(state)
        self.logbook.truncate({})
        self.journal.rewind(0)

    def _reset(self) -> None:
        """State of a run that has not made a step."""
        groups = self.objective.parameter_groups(self.model, self.config.optimizer.weight_decay)
        self.optimizer = make_optimizer(groups, self.config.optimizer)
        self.scaler = LossScaler(enabled=self.config.training.precision == "fp16")
        self.gradient_factor = 1.0  # the update multiplies the gradients by this: clipping, and no more loss scale
        self.step = self.tokens = self.skipped = self.bad_streak = self.first_bad = 0
        self.seen = SeenSources(self.objective)
        self.stream: StreamState | None = None  # how far it has been read for the last step
        self.best_loss = math.inf
        self.stop_reason: str | None = None
        self.validation: tuple[int, float] | None = None  # the last evaluation: its step and loss
        self._settled = True  # whether everything that follows a step has been done for the last one
        self._saved_step: int | None = None
        self._elapsed, self._began = 0.0, time.monotonic()

    # ---- the loop ------------------------------------------------------------------------------------------------

    def fit(self, checkpoint: Checkpoint | None = None) -> None:
        """Train to the end, or until a signal comes: then everything is saved and StopRequested raised."""
        if checkpoint is not None:
            self.load(checkpoint)
        else:
            self._start_over()
        try:
            while True:
                try:
                    self._run()
                    break
                except _Restore:
                    self._go_back()
            if self._saved_step != self.step:
                self.save_checkpoint()
            self._hook("on_train_end")
            self.writer.wait()
        except StopRequested:
            if self._saved_step != self.step:
                self.save_checkpoint()
            self.writer.wait()
            raise
        except BaseException as error:
            self.logbook.failed(error)
            self._hook("on_exception", error)
            raise
        finally:
            self.writer.join()  # whoever holds the lock after us must not meet a half-written checkpoint
            self.logbook.close()

    def _run(self) -> None:
        self.logbook.start(self.config, self.step, self.max_steps)
        self._hook("on_train_start")
        if not self._settled:  # a signal came between the last step and what follows it
            self._after_step(self.step)
        if self.step >= self.max_steps:
            return
        close = partial(close_stream, self.objective)
        with Prefetcher(self._make_batch, self.step + 1, stop=self.max_steps + 1, interrupt=close) as batches:
            while self.step < self.max_steps and self.stop_reason is None:
                self.signals.check()
                self.writer.check()
                began = time.perf_counter()
                step, batch = batches.next()
                self._hook("on_train_batch_start", step)
                metrics = self._train_step(step, batch)
                self.speed.step(time.perf_counter() - began, batches.wait_ms, batch.valid)
                self.step, self.tokens = step, self.tokens + batch.valid
                self.stream = batch.stream
                self.seen.add(batch)
                if step % self.config.loggers.every_steps == 0 or step in (1, self.max_steps) or self.bad_streak:
                    machine = self.speed.report() | {"memory/peak_mb": round(peak_memory_mb(self.device), 1)}
                    self.log(metrics | self.model.routers.metrics() | self.seen.metrics(batch) | machine)
                self._after_step(step)

    def _make_batch(self, step: int) -> StepBatch:
        """Rows of a step, in micro-batches; runs ahead in a thread of its own."""
        return step_batch(self.objective, self.journal.rows(step, self.config.batch_rows), self.config)

    def _train_step(self, step: int, batch: StepBatch) -> Metrics:
        """One optimizer step: accumulate the gradients of the micro-batches, clip, update. Returns its metrics."""
        lr = learning_rate(step, self.max_steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if not self.network.training:  # setting it visits every module
            self.network.train()
        self.optimizer.zero_grad()
        self.model.routers.clear()
        sums: list[Tensor] = []
        extra: dict[str, float] = {}
        for i, micro_batch in enumerate(batch.micro_batches):
            self.signals.check()
            seed_step(self.config.run.seed, step, i)
            with self.autocast():
                loss_sum, _, extra = self.objective.training_step(self.network, self.to_device(micro_batch))
            if batch.valid:
                (loss_sum * (self.scaler.scale / batch.valid)).backward()
            sums.append(loss_sum.detach())
        loss = norm = math.nan
        if batch.valid:
            *losses, norm = torch.stack([*sums, self._gradient_norm()]).tolist()  # one wait for the device
            loss, norm = sum(losses) / batch.valid, norm / self.scaler.scale
        if math.isfinite(loss) and math.isfinite(norm):
            self.gradient_factor = self._clip_factor(norm)
            self._hook("on_before_optimizer_step")
            self.optimizer.step(self.gradient_factor)
            self.model.routers.balance()
            self.scaler.update(overflow=False)
            self.bad_streak = 0
        else:
            self._bad_step(step, batch, loss, norm)
        restorations, undone = self.journal.undone(step)
        metrics: Metrics = {"train/loss": loss, "train/lr": lr, "train/grad_norm": norm}
        metrics["train/skipped"] = self.skipped + undone
        if self.scaler.enabled:
            metrics["train/loss_scale"] = self.scaler.scale
        if restorations:
            metrics["train/restorations"] = restorations
        return metrics | {f"train/{key}": value for key, value in extra.items()}

    def _gradient_norm(self) -> Tensor:
        return self.optimizer.gradient_norm()  # loss scale included

    def _clip_factor(self, norm: float) -> float:
        """What undoes the loss scale and brings the norm down to the limit."""
        limit = self.config.training.grad_clip
        factor = min(1.0, limit / (norm + 1e-6)) if limit is not None else 1.0
        return factor / self.scaler.scale

    def _bad_step(self, step: int, batch: StepBatch, loss: float, norm: float) -> None:
        """Skip the update. An overflow of fp16 that a smaller loss scale may cure does not count towards going back."""
        self.skipped += 1
        overflow = math.isfinite(loss) and self.scaler.can_shrink
        self.scaler.update(overflow=True)
        what = "no valid target in the batch" if not batch.valid else f"loss {loss}, gradient norm {norm}"
        self.journal.skip(step, batch.rows, f"fp16 overflow: {what}" if overflow else what)
        if overflow:
            return
        if self.bad_streak == 0:
            self.first_bad = step
        self.bad_streak += 1

    def _after_step(self, step: int) -> None:
        """What follows a step: evaluation, then the callbacks, saving last. A signal in between abandons all of it."""
        self._settled, self._before = False, self._small_state()
        every = self.config.evaluation.every_steps
        if (every is not None and step % every == 0) or step == self.max_steps:
            self.evaluate()
        self._settled = True  # as far as a checkpoint saved by the callbacks is concerned
        try:
            self._hook("on_train_batch_end", step)
        except StopRequested:
            self._settled = False
            raise
        if self.bad_streak >= self.config.training.max_bad_steps:
            raise _Restore

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def evaluate(self) -> Metrics:
        """Validation loss (and bits per byte) over the whole validation set, and by source; logs it."""
        if not any(rows for _, rows in validation_sets(self)):
            return {}
        self._hook("on_validation_start")
        metrics = validate(self)
        self.best_loss = min(self.best_loss, metrics["val/loss"])  # as it was if the new one is NaN
        self.validation = (self.step, metrics["val/loss"])
        self.log(metrics)
        self._hook("on_validation_end", metrics)
        return metrics

    # ---- state ---------------------------------------------------------------------------------------------------

    def _small_state(self) -> dict[str, Any]:
        """Everything of the state but tensors."""
        return {
            "tokens": self.tokens,
            "sources": dict(self.seen.tokens),
            "stream": self.stream.position if self.stream is not None else None,
            "elapsed": self.elapsed,
            "skipped": self.skipped,
            "bad_streak": self.bad_streak,
            "first_bad": self.first_bad,
            "restorations": self.journal.restorations,
            "best_loss": None if math.isinf(self.best_loss) else self.best_loss,
            "stop_reason": self.stop_reason,
            "scaler": self.scaler.state_dict(),
            "callbacks": {name: callback.state_dict() for name, callback in by_name(self.callbacks).items()},
            "files": self.logbook.positions(),
            "settled": True,
        }

    def save_checkpoint(self) -> None:
        """Save the state of the last finished step, in the background if the config says so."""
        state = self._small_state() if self._settled else self._before | {"settled": False}
        state["data_fingerprint"] = self.data_fingerprint
        for callback in self.callbacks:
            callback.on_save_checkpoint(self, state)
        weights = copy_to_cpu(self.model.state_dict())
        moments = copy_to_cpu(optimizer_tensors(self.optimizer, self.model) | callback_tensors(self.callbacks))
        moments |= stream_tensors(self.stream)
        if not all_finite(weights):
            raise WorkError(
                f"the weights at step {self.step} are not finite; nothing was saved over the last checkpoint"
            )
        loss = self.validation[1] if self._settled and self.validation and self.validation[0] == self.step else None
        step, keep, amid_bad = self.step, self.config.checkpoint.keep_last, self.bad_streak > 0
        self.logbook.sync()  # the checkpoint records their lengths, so what it counts must be as durable as it is

        def write() -> None:
            save_checkpoint(
                self.run_dir, step, model_config=self.model.config, model_state=weights, optimizer_state=moments,
                trainer_state=state, tokenizer=self.tokenizer, loss_for_best=loss,
            )  # fmt: skip
            if not amid_bad:  # going back needs the checkpoint before the bad steps
                prune(self.run_dir, keep, self.say)

        self.writer.submit(write)
        self._saved_step = step

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint: everything that was saved, and the log files as long as they were then."""
        state = checkpoint.trainer_state
        self._reset()
        self.model.load_state_dict(checkpoint.model_state)
        moments = load_callback_tensors(self.callbacks, checkpoint.optimizer_state)
        moments = load_stream(self.objective, state.get("stream"), moments)
        self.stream = stream_state(self.objective)
        load_optimizer_tensors(self.optimizer, self.model, moments)
        self.step, self.tokens, self._elapsed = checkpoint.step, state["tokens"], state["elapsed"]
        self.seen.tokens |= state.get("sources", {})  # a checkpoint of before there were mixtures has none
        self.skipped, self.bad_streak, self.first_bad = state["skipped"], state["bad_streak"], state["first_bad"]
        self.best_loss = math.inf if state["best_loss"] is None else state["best_loss"]
        self.stop_reason = state["stop_reason"]
        self.scaler.load_state_dict(state["scaler"])
        for name, callback in by_name(self.callbacks).items():
            callback.load_state_dict(state["callbacks"].get(name) or callback.state_dict())
            callback.on_load_checkpoint(self, state)
        self.logbook.truncate(state["files"])
        self.journal.rewind(self.step)
        self._settled = state["settled"]
        self._saved_step = self.step if self._settled else None

    def _go_back(self) -> None:
        """Undo the bad steps: back to the last checkpoint before them, never to train on their rows again."""
        training, reason = self.config.training, self.journal.last()[-1]["reason"]
        bad = f"{self.bad_streak} bad steps in a row from step {self.first_bad} ({reason})"
        if self.journal.restorations >= training.max_restores:
            raise WorkError(
                f"training stopped at step {self.step}: {bad}, after {self.journal.restorations} restorations "
                f"(training.max_restores); lower optimizer.lr or look at the rows in {self.journal.path}"
            )
        self.writer.wait()
        checkpoint = last_good_before(self.run_dir, self.first_bad, self.journal, self.say)
        target = checkpoint.step if checkpoint else 0
        rows = self.journal.restore(target, self.first_bad)
        discard_later(self.run_dir, target)
        if checkpoint is not None:
            self.load(checkpoint)
        else:
            self._start_over()
        self.say(f"{bad}: back to step {target}, and on without {len(rows)} rows")

    # ---- small things --------------------------------------------------------------------------------------------

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, earlier sessions of the run included."""
        return self._elapsed + time.monotonic() - self._began

    def autocast(self) -> AbstractContextManager[Any]:
        """The arithmetic that the config asks for."""
        return autocast(self.config.training.precision, self.device)

    def stop(self, reason: str) -> None:
        """End the run after this step, as if it were its last."""
        self.stop_reason = reason

    def log(self, metrics: Metrics) -> None:
        """One line of metrics, to `metrics.jsonl` and every logger."""
        self.logbook.log({"step": self.step, "tokens": self.tokens, "time": round(self.elapsed, 3)} | metrics)

    def log_histograms(self, step: int, values: dict[str, Histogram]) -> None:
        """Histograms, to every logger."""
        self.logbook.histograms(step, values)

    def log_sample(self, step: int, text: str) -> None:
        """A generated text, to `samples.jsonl` and every logger."""
        self.logbook.sample(step, text)

    def say(self, message: str) -> None:
        """A line for people."""
        self.logbook.message(message)

    def _hook(self, name: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, name)(self, *arguments)

    def to_device(self, batch: Batch) -> Batch:
        """A batch where the network is."""
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
