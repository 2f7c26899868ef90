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
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from minigpt.config import Config
from minigpt.config.pace import Pace
from minigpt.data import Prefetcher
from minigpt.data.streaming.stream import StreamState
from minigpt.model import GPT
from minigpt.objectives import Batch, Objective
from minigpt.optim import Average, learning_rate, make_optimizer
from minigpt.parallel.build import alone
from minigpt.parallel.parallel import Parallel
from minigpt.storage import Checkpoint
from minigpt.tokenizer import Tokenizer
from minigpt.training.bad_steps import go_back, skip_step
from minigpt.training.batches import StepBatch, step_batch
from minigpt.training.callbacks import Callback
from minigpt.training.journal import RowJournal
from minigpt.training.loggers import Histogram, LogBook, Logger, Metrics, SilentLogBook
from minigpt.training.precision import LossScaler, autocast
from minigpt.training.seeds import seed_step
from minigpt.training.signals import StopRequested, StopSignals
from minigpt.training.snapshots import BackgroundWriter
from minigpt.training.sources import SeenSources
from minigpt.training.state import load_state, save_state, small_state
from minigpt.training.streams import close_stream, load_stream
from minigpt.training.telemetry import Speedometer, peak_flops, peak_memory_mb
from minigpt.training.together import check_signals, next_batch
from minigpt.training.validation import validate, validation_sets
from minigpt.training.whole import routing_metrics


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
        model: GPT | Parallel,
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
        initialise: Callable[[Parallel], None] | None = None,
    ) -> None:
        self.config, self.objective, self.device = config, objective, device
        self.parallel = model if isinstance(model, Parallel) else alone(model, config)
        self.world = self.parallel.world
        self.model, self.network = self.parallel.model, self.parallel.network
        self.pace = Pace(config)
        self.model.z_loss.weight = config.training.z_loss
        self.run_dir, self.max_steps, self.tokenizer = run_dir, max_steps, tokenizer
        self.callbacks = list(callbacks)
        self.signals = signals or StopSignals()
        self.data_fingerprint = data_fingerprint
        self._initialise = initialise or (lambda parallel: None)
        self.micro_batch = cast(int, config.training.micro_batch)
        self.read_journal()
        self.writer = BackgroundWriter(config.checkpoint.background)
        self.speed = Speedometer(self.model.flops_per_token(), self._peak_flops)
        self._fresh_callbacks = copy.deepcopy([callback.state_dict() for callback in self.callbacks])
        self._reset()
        # last: what is refused before leaves no files
        self.logbook = LogBook(run_dir, loggers, console) if self.world.is_main else SilentLogBook(run_dir)

    def read_journal(self) -> None:
        """The rows to leave out, as the run folder says."""
        self.journal = RowJournal(self.run_dir / "skipped.jsonl", writes=self.world.is_main)

    def start_over(self) -> None:
        """Step 0: first weights, and nothing of what a run killed before its first checkpoint left in the files."""
        self._initialise(self.parallel)
        load_stream(self.objective, None, {})
        self._reset()
        for callback, state in zip(self.callbacks, copy.deepcopy(self._fresh_callbacks), strict=True):
            callback.load_state_dict(state)
        self.logbook.truncate({})
        self.journal.rewind(0)

    def _reset(self) -> None:
        """State of a run that has not made a step."""
        groups = self.objective.parameter_groups(self.model, self.config.optimizer.weight_decay)
        rounded = self.config.training.precision != "fp32"
        self.optimizer = make_optimizer(groups, self.config.optimizer, self.parallel, rounded=rounded)
        self.average = self._fresh_average()
        self.scaler = LossScaler(enabled=self.config.training.precision == "fp16")
        self.gradient_factor = 1.0  # the update multiplies the gradients by this: clipping, and no more loss scale
        self.step = self.tokens = self.skipped = self.bad_streak = self.first_bad = 0
        self.seen = SeenSources(self.objective)
        self.stream: StreamState | None = None  # how far it has been read for the last step
        self.best_loss = math.inf
        self.stop_reason: str | None = None
        self.validation: tuple[int, float] | None = None  # the last evaluation: its step and loss
        self.settled = True  # whether everything that follows a step has been done for the last one
        self.saved_step: int | None = None
        self.elapsed_before, self._began = 0.0, time.monotonic()
        self._told = self._began

    def _fresh_average(self) -> Average | None:
        decay = self.config.optimizer.ema_decay
        weights = {name: self.parallel.local(p.detach()) for name, p in self.model.named_parameters()}
        return None if decay is None else Average(weights, decay)

    # ---- the loop ------------------------------------------------------------------------------------------------

    def fit(self, checkpoint: Checkpoint | None = None) -> None:
        """Train to the end, or until a signal comes: then everything is saved and StopRequested raised."""
        if checkpoint is not None:
            self.load(checkpoint)
        else:
            self.start_over()
        try:
            while True:
                try:
                    self._run()
                    break
                except _Restore:
                    go_back(self)
            if self.saved_step != self.step:
                self.save_checkpoint()
            self._hook("on_train_end")
            self.writer.wait()
        except StopRequested:
            if self.saved_step != self.step:
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
        self._told = self.world.tell(time.monotonic())
        self._hook("on_train_start")
        if not self.settled:  # a signal came between the last step and what follows it
            self._after_step(self.step)
        if self.step >= self.max_steps:
            return
        close = partial(close_stream, self.objective)
        with Prefetcher(self._make_batch, self.step + 1, stop=self.max_steps + 1, interrupt=close) as batches:
            while self.step < self.max_steps:
                began = time.perf_counter()
                self.world.step = self.step + 1
                found = next_batch(self, batches)
                if found is None:
                    break
                step, batch = found
                self._hook("on_train_batch_start", step)
                metrics = self._train_step(step, batch)
                self.speed.step(time.perf_counter() - began, batches.wait_ms, batch.valid)
                self.step, self.tokens = step, self.tokens + batch.valid
                self.stream = batch.stream
                self.seen.add(batch)
                if step % self.config.loggers.every_steps == 0 or step in (1, self.max_steps) or self.bad_streak:
                    machine = self.speed.report() | {"memory/peak_mb": round(peak_memory_mb(self.device), 1)}
                    routing = routing_metrics(self.world, self.model.routers)
                    self.log(metrics | routing | self.seen.metrics(batch) | machine)
                self._after_step(step)

    def _make_batch(self, step: int) -> StepBatch:
        """This process's rows of a step, in micro-batches; runs ahead in a thread of its own."""
        rows = self.journal.rows(self.pace.first_row(step), self.pace.batch_rows(step))
        share = (self.world.data_rank, self.world.data_size)
        return step_batch(self.objective, rows, self.config, self.pace.context_length(step), share)

    def _keep_pace(self, step: int) -> None:
        """The window of this step, and the work that its shorter rows are."""
        if (window := self.pace.window(step)) is not None:
            self.model.set_training_window(window)
        if self.config.schedule.context_length is not None:
            self.speed.flops_per_token = self.model.flops_per_token(self.pace.context_length(step))

    def _train_step(self, step: int, batch: StepBatch) -> Metrics:
        """One optimizer step: accumulate the gradients of the micro-batches, clip, update. Returns its metrics."""
        lr = learning_rate(step, self.max_steps, self.config)
        self.optimizer.set_lr(lr)
        if not self.network.training:  # setting it visits every module
            self.network.train()
        self.optimizer.zero_grad()
        self.model.routers.clear()
        self.model.z_loss.clear()
        self._keep_pace(step)
        extra: dict[str, float] = {}

        def run(number: int, network: nn.Module, micro_batch: Batch) -> Tensor:
            nonlocal extra
            if self.world.size == 1:
                self.signals.check()
            seed_step(self.config.run.seed, step, number, self._place)
            with self.autocast():
                loss_sum, _, extra = self.objective.training_step(network, self.to_device(micro_batch))
            return loss_sum

        scale = self.scaler.scale / batch.valid if batch.valid else 0.0
        total = self.parallel.forward_backward(batch.numbers, batch.micro_batches, run, scale)
        self.parallel.finish_gradients()
        loss = norm = math.nan
        if batch.valid:
            total_loss, norm = self._loss_and_norm(total)
            loss, norm = total_loss / batch.valid, norm / self.scaler.scale
        if math.isfinite(loss) and math.isfinite(norm):
            self.gradient_factor = self._clip_factor(norm)
            self._hook("on_before_optimizer_step")
            self.optimizer.step(self.gradient_factor)
            if self.average is not None:
                self.average.update(step)
            self.model.routers.sum_over(self.world.group("dp", "fsdp", "cp"))
            self.model.routers.balance()
            self.scaler.update(overflow=False)
            self.bad_streak = 0
        else:
            skip_step(self, step, batch, loss, norm)
        restorations, undone = self.journal.undone(step)
        metrics: Metrics = {"train/loss": loss, "train/lr": lr, "train/grad_norm": norm}
        metrics["train/skipped"] = self.skipped + undone
        if self.model.z_loss.squares is not None and batch.valid:
            metrics["train/z_loss"] = float(self.model.z_loss.squares) / batch.valid
        if self.scaler.enabled:
            metrics["train/loss_scale"] = self.scaler.scale
        if restorations:
            metrics["train/restorations"] = restorations
        return metrics | {f"train/{key}": value for key, value in extra.items()}

    def _loss_and_norm(self, total: Tensor) -> tuple[float, float]:
        """The sum of all losses and the norm of all gradients (loss scale included), the same on every process."""
        if self.world.size == 1:
            loss, norm = torch.stack([total, self._gradient_norm().to(total)]).tolist()  # one wait for the device
            return loss, norm
        squares = self.parallel.squares(self.optimizer.gradients())
        loss, mine = torch.stack([total, squares.to(total)]).tolist()
        clock, z_loss = time.monotonic() if self.world.is_main else 0.0, self.model.z_loss
        log_z = float(z_loss.squares) if z_loss.squares is not None else 0.0
        counted = [loss, log_z] if self.world.counts_loss else [0.0, 0.0]
        loss, log_z, all_squares, self._told = self.world.sum([*counted, mine, clock])
        z_loss.squares = torch.tensor(log_z) if z_loss.weight else None
        return loss, math.sqrt(all_squares)

    def _gradient_norm(self) -> Tensor:
        return self.optimizer.gradient_norm()  # loss scale included

    def _clip_factor(self, norm: float) -> float:
        """What undoes the loss scale and brings the norm down to the limit."""
        limit = self.config.training.grad_clip
        factor = min(1.0, limit / (norm + 1e-6)) if limit is not None else 1.0
        return factor / self.scaler.scale

    def _after_step(self, step: int) -> None:
        """What follows a step: evaluation, then the callbacks, saving last. A signal in between abandons all of it."""
        self.settled, self.before = False, small_state(self)
        every = self.config.evaluation.every_steps
        if (every is not None and step % every == 0) or step == self.max_steps:
            self.evaluate()
        self.settled = True  # as far as a checkpoint saved by the callbacks is concerned
        try:
            self._hook("on_train_batch_end", step)
        except StopRequested:
            self.settled = False
            raise
        if self.bad_streak >= self.config.training.max_bad_steps:
            raise _Restore

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def evaluate(self) -> Metrics:
        """Validation loss (and bits per byte) over the whole validation set, and by source; logs it."""
        if not any(rows for _, rows in validation_sets(self)):
            return {}
        self._hook("on_validation_start")
        with self.averaged():
            metrics = validate(self)
        self.best_loss = min(self.best_loss, metrics["val/loss"])  # as it was if the new one is NaN
        self.validation = (self.step, metrics["val/loss"])
        self.log(metrics)
        self._hook("on_validation_end", metrics)
        return metrics

    # ---- state ---------------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        """Save the state of the last finished step, in the background if the config says so."""
        save_state(self)

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint: everything that was saved, and the log files as long as they were then."""
        self._reset()
        load_state(self, checkpoint)

    def check_signals(self) -> None:
        """Raises StopRequested, on every process, once a signal has come to any of them. All must call it."""
        check_signals(self.world, self.signals)

    # ---- small things --------------------------------------------------------------------------------------------

    @property
    def _place(self) -> int:
        """Which of the processes with the same rows this is: each has other tokens of them to drop."""
        place, sizes = self.world.place, self.world.sizes
        return (place["pp"] * sizes["cp"] + place["cp"]) * sizes["tp"] + place["tp"]

    def _peak_flops(self) -> float | None:
        """Of all processes together; the others leave the looking to the main one."""
        peak = peak_flops(self.device, self.config.training.precision) if self.world.is_main else None
        return None if peak is None else peak * self.world.size

    @property
    def now(self) -> float:
        """The clock, in seconds, by which all processes decide: the main one's, at the end of the last step."""
        return time.monotonic() if self.world.size == 1 else self._told

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, earlier sessions of the run included."""
        return self.elapsed_before + time.monotonic() - self._began

    def autocast(self, device: torch.device | None = None) -> AbstractContextManager[Any]:
        """The arithmetic that the config asks for."""
        return autocast(self.config.training.precision, device or self.device)

    def averaged(self) -> AbstractContextManager[Any]:
        """Within it, the weights are their average, if the config asks for one."""
        return nullcontext() if self.average is None else self.average.swapped()

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
