"""What the Trainer costs over a bare loop of the same model, optimizer and batches, at 0.8M parameters.

    python benchmarks/trainer_overhead.py [--steps 300] [--turns 5] [--precision fp32]

Both train on the same rows of the same text, in one process, in turns: `Trainer.fit` (prefetching, metrics.jsonl every
10 steps, callbacks, checks for NaN, signals; no evaluation and no checkpoint in the measured steps) and a plain loop
of batch, forward, backward, norm, clipping, update. Also says which share of a step waited for data.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from minigpt.config import load_config
from minigpt.data.demo.stories import stories
from minigpt.objectives import stack
from minigpt.optim import learning_rate, make_optimizer
from minigpt.training import Callback
from minigpt.training.callbacks import make_callbacks
from minigpt.training.precision import autocast
from minigpt.training.setup import assemble
from minigpt.training.trainer import Trainer

SKIPPED = 20  # steps at the start of a turn that are not measured


class Clock(Callback):
    """Time of each step's end."""

    def __init__(self):
        self.times = []

    def on_train_batch_end(self, trainer, step):
        self.times.append(time.perf_counter())


def fit(parts, steps):
    """Seconds a step, and the mean wait for data in seconds, of a run through the Trainer."""
    config, clock = parts.config, Clock()
    folder = Path(tempfile.mkdtemp())
    own = make_callbacks(config.callbacks, config.checkpoint, parts.tokenizer, config.run.seed)
    trainer = Trainer(
        config, parts.model(), parts.objective(), run_dir=folder, max_steps=steps, device=parts.device,
        tokenizer=parts.tokenizer, callbacks=[*own, clock], initialise=parts.initialise,
    )  # fmt: skip
    trainer.evaluate = lambda: {}
    trainer.save_checkpoint = lambda: None
    trainer.fit()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    waits = [line["perf/data_wait_ms"] for line in lines if line["step"] > SKIPPED]
    return (clock.times[-2] - clock.times[SKIPPED - 1]) / (steps - 1 - SKIPPED), statistics.fmean(waits) / 1000


def bare(parts, steps):
    """Seconds a step of a plain loop over the same rows."""
    config, objective, model = parts.config, parts.objective(), parts.model()
    parts.initialise(model)
    optimizer = make_optimizer(objective.parameter_groups(model, config.optimizer.weight_decay), config.optimizer)
    parameters, limit, rows = list(model.parameters()), config.training.grad_clip, config.batch_rows
    batches = [stack([objective.row(step * rows + i) for i in range(rows)]) for step in range(steps)]
    model.train()
    for step, batch in enumerate(batches, 1):
        if step == SKIPPED + 1:
            began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, config)
        optimizer.zero_grad()
        with autocast(config.training.precision, parts.device):
            loss = model(batch["ids"], targets=batch["targets"]) / batch["targets"].numel()
        loss.backward()
        norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm([p.grad for p in parameters]))))
        optimizer.step(min(1.0, limit / (norm + 1e-6)))
        loss.item()
    return (time.perf_counter() - began) / (steps - SKIPPED)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    args = parser.parse_args()
    text = Path(tempfile.mkdtemp()) / "text.txt"
    text.write_text("\n".join(stories(seed=0, count=2000)))
    overrides = [f"data.train={text}", f"training.max_steps={args.steps}", f"training.precision={args.precision}"]
    config, _ = load_config("shakespeare-char", overrides)
    parts = assemble(config)
    pairs, waits = [], []
    for _ in range(args.turns):
        plain = bare(parts, args.steps)
        through, wait = fit(parts, args.steps)
        pairs.append((through, plain))
        waits.append(wait / through)
    ratios = sorted(through / plain for through, plain in pairs)
    print(f"a step of the bare loop {1000 * statistics.median(p for _, p in pairs):.2f} ms, "
          f"through the Trainer {1000 * statistics.median(t for t, _ in pairs):.2f} ms: "
          f"ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}); "
          f"waiting for data {statistics.median(waits):.2%} of a step")  # fmt: skip


if __name__ == "__main__":
    main()
