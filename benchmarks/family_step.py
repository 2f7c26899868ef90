"""A training step of the default family beside transformers' Qwen3ForCausalLM, the same architecture: time and memory.

    python benchmarks/family_step.py [--sizes 5M 114M] [--precisions fp32 bf16] [--turns N] [--threads N]

Both begin with the same weights and see the same batches of random ids, made within the measured time; before
anything is timed their losses are compared. minigpt's step is the Trainer's own, with its logging; the other one is
the loop that most people write: autocast, backward, clipping at 1.0, AdamW (PyTorch's fused kernel, as minigpt's).
Each lives in a process of its own, so that its peak memory is its own, and they take turns, a few steps each, so that
a change of the machine's speed hits both alike: ratios are medians over the turns of the ratio within a turn.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

SIZES = {
    "5M": {"n_layer": 4, "n_head": 4, "n_kv_head": 2, "n_embd": 256, "context_length": 256, "rows": 8, "vocab": 8192},
    "114M": {"n_layer": 12, "n_head": 12, "n_kv_head": 4, "n_embd": 768, "context_length": 512, "rows": 2,
             "vocab": 50304},
}  # fmt: skip
LR, BETAS, DECAY, CLIP = 1e-4, (0.9, 0.95), 0.1, 1.0
POOL = 2**20
WARM_UP_STEPS = 2
TURN_SECONDS = 3.0


def config_of(task):
    from minigpt.config import load_config

    shape = task["shape"]
    model = {key: value for key, value in shape.items() if key not in ("rows", "vocab")}
    tokens = shape["rows"] * shape["context_length"]
    return load_config(
        {
            "run": {"device": task["device"], "deterministic": task["device"] == "cpu", "threads": task["threads"]},
            "model": model | {"vocab_size": shape["vocab"]},
            "optimizer": {"lr": LR, "betas": list(BETAS), "weight_decay": DECAY},
            "schedule": {"kind": "constant"},
            "training": {"max_steps": 10**9, "batch_tokens": tokens, "micro_batch": shape["rows"],
                         "precision": task["precision"], "grad_clip": CLIP},
        }
    )[0]  # fmt: skip


def network_of(config):
    import torch

    from minigpt.model import GPT

    return GPT(config.model, generator=torch.Generator().manual_seed(0))


def ids_of(shape):
    import numpy as np

    return np.random.default_rng(0).integers(0, shape["vocab"], POOL + shape["context_length"] + 1)


def make_minigpt(task):
    """(step, loss of the first batch)."""
    from minigpt.optim import parameter_groups
    from minigpt.training.setup import settle_hardware
    from minigpt.training.trainer import Trainer

    config, place = settle_hardware(config_of(task))
    ids, length = ids_of(task["shape"]), task["shape"]["context_length"]

    class RandomRows:
        """Rows of random ids; the loss is the pretraining objective's."""

        rows_per_epoch, validation_rows = 10**9, 0

        def row(self, index):
            window = ids[index * length % POOL :][: length + 1]
            return {"ids": window[:-1], "targets": window[1:]}

        def training_step(self, network, batch):
            return network(batch["ids"], targets=batch["targets"]), batch["targets"].numel(), {}

        def parameter_groups(self, network, weight_decay):
            return parameter_groups(network.named_parameters(), weight_decay)

    network = network_of(config).to(place)
    run_dir = Path(tempfile.mkdtemp())
    trainer = Trainer(config, network, RandomRows(), run_dir=run_dir, max_steps=10**9, device=place)
    batch = first_batch(task)
    loss = network(batch[:, :-1], targets=batch[:, 1:]).item() / batch[:, 1:].numel()
    return lambda number: trainer._train_step(number + 1, trainer._make_batch(number + 1)), loss


def make_transformers(task):
    """(step, loss of the first batch)."""
    import numpy as np
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from minigpt.interop.huggingface.families import FAMILIES
    from minigpt.interop.tensors import to_theirs

    shape, device = task["shape"], task["device"]
    ours = config_of(task)
    family = FAMILIES["qwen3"]
    settings = {key: value for key, value in family.write(ours.model).items() if key != "architectures"}
    model = Qwen3ForCausalLM(Qwen3Config(**settings | {"use_cache": False}))
    weights = dict(to_theirs(family.rules(ours.model), network_of(ours).state_dict()))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and missing in ([], ["lm_head.weight"]), (missing, unexpected)
    model = model.to(device).train()
    model.tie_weights()
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)
    ids, rows, length = ids_of(shape), shape["rows"], shape["context_length"]

    def loss_of(batch):
        # `shift_labels` are targets as they are, without the model moving them
        return model(batch[:, :-1], labels=batch[:, 1:], shift_labels=batch[:, 1:].contiguous()).loss

    def step(number):
        starts = (number * rows + np.arange(rows)) * length % POOL
        batch = torch.stack([torch.from_numpy(ids[start : start + length + 1]) for start in starts]).to(device)
        with torch.autocast(device, torch.bfloat16) if task["precision"] == "bf16" else nullcontext():
            loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if number % 10 == 0:
            loss.item()

    return step, loss_of(first_batch(task)).item()


def first_batch(task):
    import torch

    shape = task["shape"]
    rows = ids_of(shape)[: 64 * shape["context_length"]].reshape(-1, shape["context_length"])[:1]
    return torch.from_numpy(rows).to(task["device"])


MAKERS = {"minigpt": make_minigpt, "transformers": make_transformers}


def work(task):
    """Serve one contestant: a line N on stdin asks for N steps, the answer is their seconds and the peak memory."""
    import torch

    torch.set_num_threads(task["threads"])
    answers, sys.stdout = sys.stdout, sys.stderr
    step, loss = MAKERS[task["kind"]](task)
    wait = torch.cuda.synchronize if task["device"] == "cuda" else lambda: None
    done = 0
    print(json.dumps({"loss": loss}), file=answers, flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            step(done)
            done += 1
        wait()
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "memory": memory_mb(task["device"])}), file=answers, flush=True)


def memory_mb(device):
    """The largest resident set so far, or on a GPU the most that was allocated there, in MB."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


class Worker:
    """One contestant in a process of its own."""

    def __init__(self, task):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work", json.dumps(task)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.loss = self._answer()["loss"]
        self.seconds, self.memory = [], 0.0
        self.run(WARM_UP_STEPS)
        self.steps = max(1, min(200, round(TURN_SECONDS / max(self.run(1), 1e-6))))

    def run(self, steps):
        """Seconds of one step."""
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.memory = answer["memory"]
        return answer["seconds"] / steps

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"a contestant failed:\n{self.process.stderr.read()[-3000:]}")
        return json.loads(line)

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def contest(size, precision, args):
    """One table."""
    shape = SIZES[size]
    task = {"shape": shape, "precision": precision, "device": args.device, "threads": args.threads}
    workers = {kind: Worker(task | {"kind": kind}) for kind in MAKERS}
    ours, theirs = workers["minigpt"], workers["transformers"]
    for _ in range(args.turns):
        for worker in workers.values():
            worker.seconds.append(worker.run(worker.steps))
    for worker in workers.values():
        worker.stop()
    difference = abs(ours.loss - theirs.loss)
    if difference > 1e-4:
        sys.exit(f"they are not the same network: losses of the first row are {ours.loss} and {theirs.loss}")
    tokens = shape["rows"] * shape["context_length"]
    print(f"\n{size}: {shape['rows']} x {shape['context_length']} tokens, {precision}, {args.device}, "
          f"{args.threads} threads; losses of the first row differ by {difference:.1e}")  # fmt: skip
    print(f"{'':14}{'ms/step':>10}{'tokens/s':>12}{'peak MB':>10}")
    for kind, worker in workers.items():
        middle = statistics.median(worker.seconds)
        print(f"{kind:14}{middle * 1e3:>10.1f}{tokens / middle:>12,.0f}{worker.memory:>10,.0f}")
    ratios = sorted(b / a for a, b in zip(ours.seconds, theirs.seconds, strict=True))
    print(f"transformers / minigpt: time {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), "
          f"memory {theirs.memory / ours.memory:.2f}", flush=True)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(json.loads(args.work))
        return
    for size in args.sizes:
        for precision in args.precisions:
            contest(size, precision, args)


if __name__ == "__main__":
    main()
