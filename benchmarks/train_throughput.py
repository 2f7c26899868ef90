"""The training step beside nanoGPT's, Hugging Face's and litgpt's: tokens a second, share of the peak, peak memory.

    python benchmarks/train_throughput.py [--nanogpt CLONE] [--litgpt FOLDER] [--hf-trainer] [--levels] [--compile]
        [--float8] [--sizes 0.8M 10.7M 124M] [--precisions fp32 bf16] [--device cpu]

CLONE is github.com/karpathy/nanoGPT. FOLDER is where litgpt is, if not among the installed packages, from
`pip install --no-deps --target FOLDER litgpt lightning lightning-utilities torchmetrics jsonargparse`. `transformers`
is needed for Hugging Face's columns, and `accelerate` for its Trainer.

Every contestant has the same shapes (GPT-2's architecture, no dropout), AdamW, clipping at 1.0, and a batch of random
ids that is made within the measured time. litgpt knows no learned positions and ties no embeddings, so it has rotary
ones and a head of its own; the FLOPs of its matrices are the same. minigpt's step is the Trainer's own, with its
logging of every loss; so is Hugging Face's Trainer's. Each lives in a process of its own, and they take turns, a few
steps each, so that a change of the machine's speed hits all alike; ratios are medians over the turns of the ratio
within a turn. The peak is a 2048^3 product (8192^3 on a GPU), measured in every turn.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

SIZES = {
    "0.8M": {"n_layer": 4, "n_head": 4, "n_embd": 128, "context_length": 64, "rows": 12, "vocab_size": 65},
    "10.7M": {"n_layer": 6, "n_head": 6, "n_embd": 384, "context_length": 256, "rows": 16, "vocab_size": 65},
    "124M": {"n_layer": 12, "n_head": 12, "n_embd": 768, "context_length": 512, "rows": 2, "vocab_size": 50304},
    "350M": {"n_layer": 24, "n_head": 16, "n_embd": 1024, "context_length": 512, "rows": 1, "vocab_size": 50304},
}
GPU_ROWS = {"0.8M": 512, "10.7M": 256, "124M": 64, "350M": 32}  # a GPU wants larger batches
LEVELS = ("selective", "full")
POOL = 2**20
WARM_UP_STEPS = 3
TURN_SECONDS = 4.0


# ---- contestants, each in a process of its own ----------------------------------------------------------------------


def make_minigpt(shape, precision, device, **options):
    import torch

    from minigpt.config import load_config
    from minigpt.model import GPT
    from minigpt.training.setup import settle_hardware
    from minigpt.training.trainer import Trainer

    rows, length = shape["rows"], shape["context_length"]
    model = {k: v for k, v in shape.items() if k != "rows"}
    config, _ = load_config(
        {
            "run": {"device": device, "deterministic": device == "cpu", "threads": torch.get_num_threads()},
            "model": model
            | {"norm": "layernorm", "norm_eps": 1e-5, "position": "learned", "mlp": "gelu", "qk_norm": False},
            "training": {
                "max_steps": 10**9, "batch_tokens": rows * length, "micro_batch": rows, "precision": precision,
            } | options,
        }
    )  # fmt: skip
    config, place = settle_hardware(config)

    ids = random_ids(shape)

    class RandomRows:
        """Rows of random ids; the loss is the pretraining objective's."""

        rows_per_epoch, validation_rows = 10**9, 0

        def row(self, index):
            window = ids[index * length % POOL :][: length + 1]
            return {"ids": window[:-1], "targets": window[1:]}

        def training_step(self, network, batch):
            return network(batch["ids"], targets=batch["targets"]), batch["targets"].numel(), {}

        def parameter_groups(self, network, weight_decay):
            from minigpt.optim import parameter_groups

            return parameter_groups(network.named_parameters(), weight_decay)

    network = GPT(config.model, generator=torch.Generator().manual_seed(0)).to(place)
    trainer = Trainer(config, network, RandomRows(), run_dir=Path(tempfile.mkdtemp()), max_steps=10**9, device=place)
    flops = network.flops_per_token()

    def step(number):
        trainer._train_step(number + 1, trainer._make_batch(number + 1))

    return step, flops


def make_nanogpt(shape, precision, device, path):
    sys.path.insert(0, path)
    from model import GPT, GPTConfig  # nanoGPT's model.py

    sizes = {k: shape[k] for k in ("n_layer", "n_head", "n_embd", "vocab_size")}
    model = GPT(GPTConfig(block_size=shape["context_length"], dropout=0.0, bias=False, **sizes)).to(device)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), device)
    return loop(model, optimizer, shape, precision, device, lambda ids, targets: model(ids, targets)[1]), None


def make_hf(shape, precision, device):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {k: shape[k] for k in ("n_layer", "n_head", "n_embd", "vocab_size")}
    config = GPT2Config(
        n_positions=shape["context_length"], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, **sizes
    )
    model = GPT2LMHeadModel(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    # the labels are the targets moved back by one place, since the model moves them forward by itself
    return loop(model, optimizer, shape, precision, device, lambda ids, targets: model(ids, labels=ids).loss), None


def make_hf_trainer(shape, precision, device):
    """Hugging Face's Trainer, in a thread that waits before each step until it is asked for."""
    import threading

    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    sizes = {k: shape[k] for k in ("n_layer", "n_head", "n_embd", "vocab_size")}
    length, ids = shape["context_length"], torch.from_numpy(random_ids(shape))
    config = GPT2Config(n_positions=length, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, **sizes)
    asked, done = threading.Semaphore(0), threading.Semaphore(0)

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 10**9

        def __getitem__(self, index):
            row = ids[index * length % POOL :][:length]
            return {"input_ids": row, "labels": row}

    class Turns(TrainerCallback):
        def on_step_begin(self, *arguments, **options):
            asked.acquire()

        def on_step_end(self, *arguments, **options):
            done.release()

    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), max_steps=10**9, per_device_train_batch_size=shape["rows"], learning_rate=1e-3,
        weight_decay=0.1, adam_beta2=0.95, max_grad_norm=1.0, bf16=precision == "bf16", use_cpu=device == "cpu",
        train_sampling_strategy="sequential", save_strategy="no", report_to=[], logging_steps=10, disable_tqdm=True,
        dataloader_pin_memory=device != "cpu", lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = Trainer(GPT2LMHeadModel(config), arguments, train_dataset=Rows(), callbacks=[Turns()])

    def train():
        try:
            trainer.train()
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    threading.Thread(target=train, daemon=True).start()

    def step(number):
        asked.release()
        done.acquire()

    return step, None


def make_litgpt(shape, precision, device, path):
    """The step of litgpt's pretrain.py: Fabric, its model, its chunked loss."""
    sys.path.insert(0, path or ".")
    import lightning
    import numpy as np
    import torch
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    sizes = {k: shape[k] for k in ("n_layer", "n_head", "n_embd")}
    rows, length, ids = shape["rows"], shape["context_length"], random_ids(shape)
    config = Config(
        block_size=length, vocab_size=shape["vocab_size"], padded_vocab_size=shape["vocab_size"], bias=False,
        norm_class_name="LayerNorm", mlp_class_name="GptNeoxMLP", gelu_approximate="tanh", parallel_residual=False,
        rotary_percentage=1.0, intermediate_size=4 * shape["n_embd"], **sizes,
    )  # fmt: skip
    arithmetic = {"bf16": "bf16-mixed", "fp32": "32-true"}[precision]
    fabric = lightning.Fabric(accelerator=device, devices=1, precision=arithmetic)
    model = fabric.setup(GPT(config))
    fused = device == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=fused)
    optimizer = fabric.setup_optimizers(optimizer)

    def step(number):
        starts = (number * rows + np.arange(rows)) * length % POOL
        batch = torch.stack([torch.from_numpy(ids[start : start + length + 1]) for start in starts]).to(device)
        loss = chunked_cross_entropy(model(batch[:, :-1].contiguous()), batch[:, 1:].contiguous())
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        if number % 10 == 0:
            loss.item()

    return step, None


def loop(model, optimizer, shape, precision, device, loss_of):
    """The step of nanoGPT's train.py, which most people write: batch, autocast, backward, clip, update."""
    from contextlib import nullcontext

    import numpy as np
    import torch

    ids, rows, length = random_ids(shape), shape["rows"], shape["context_length"]

    def step(number):
        starts = (number * rows + np.arange(rows)) * length % POOL
        batch = torch.stack([torch.from_numpy(ids[start : start + length + 1]) for start in starts]).to(device)
        with torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext():
            loss = loss_of(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if number % 10 == 0:
            loss.item()

    return step


def random_ids(shape):
    """The text: what its ids are makes no difference to the speed."""
    import numpy as np

    return np.random.default_rng(0).integers(0, shape["vocab_size"], POOL + shape["context_length"] + 1)


def make_peak(precision, device):
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    size = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return (lambda number: torch.mm(a, b)), 2 * size**3


def work(task):
    """Serve one contestant: a line N on stdin asks for N steps, the answer is their seconds."""
    import torch

    torch.set_num_threads(task["threads"])
    kind, shape, precision, device = task["kind"], task["shape"], task["precision"], task["device"]
    answers, sys.stdout = sys.stdout, sys.stderr  # nanoGPT prints while it is set up
    if kind == "peak":
        step, flops = make_peak(precision, device)
    elif kind == "nanoGPT":
        step, flops = make_nanogpt(shape, precision, device, task["nanogpt"])
    elif kind == "Hugging Face":
        step, flops = make_hf(shape, precision, device)
    elif kind == "HF Trainer":
        step, flops = make_hf_trainer(shape, precision, device)
    elif kind == "litgpt":
        step, flops = make_litgpt(shape, precision, device, task["litgpt"])
    else:
        level = next((level for level in LEVELS if level in kind), "none")
        options = {"compile": "compiled" in kind, "float8": "float8" in kind, "activation_checkpointing": level}
        step, flops = make_minigpt(shape, precision, device, **{k: v for k, v in options.items() if v})
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    done = 0
    print(json.dumps({"flops": flops}), file=answers, flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            step(done)
            done += 1
        wait()
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "memory": memory_mb(device)}), file=answers, flush=True)


def memory_mb(device):
    """The largest resident set so far, or on a GPU the most that was allocated there, in MB."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


# ---- the contest ----------------------------------------------------------------------------------------------------


class Worker:
    def __init__(self, task):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work", json.dumps(task)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.flops = self._answer()["flops"]
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

    def turn(self):
        self.seconds.append(self.run(self.steps))

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
    shape = dict(SIZES[size])
    if args.device == "cuda":
        shape["rows"] = GPU_ROWS[size]
        if size in ("124M", "350M"):
            shape["context_length"] = 1024
    task = {"shape": shape, "precision": precision, "device": args.device, "threads": args.threads,
            "nanogpt": args.nanogpt, "litgpt": args.litgpt}  # fmt: skip
    kinds = ["minigpt"] + ["minigpt compiled"] * args.compile
    kinds += ["minigpt compiled float8"] * (args.float8 and precision == "bf16")
    kinds += [f"minigpt {level}" for level in LEVELS if args.levels]
    kinds += ["nanoGPT"] * bool(args.nanogpt) + ["Hugging Face"] * args.hf + ["HF Trainer"] * args.hf_trainer
    kinds += ["litgpt"] * (args.litgpt is not None)
    workers = {kind: Worker(task | {"kind": kind}) for kind in ["peak", *kinds]}
    for _ in range(args.turns):
        for worker in workers.values():
            worker.turn()
    for worker in workers.values():
        worker.stop()
    tokens = shape["rows"] * shape["context_length"]
    flops = workers["minigpt"].flops * tokens
    peaks = [workers["peak"].flops / s for s in workers["peak"].seconds]
    print(f"\n{size} parameters, {shape['rows']} x {shape['context_length']} tokens, {precision}; "
          f"matrix peak {statistics.median(peaks) / 1e9:,.0f} GFLOP/s")  # fmt: skip
    print(
        f"{'':24}{'tokens/s':>12}{'ms/step':>10}{'of the peak':>13}{'memory MB':>11}   minigpt's speed relative to it"
    )
    ours = workers["minigpt"].seconds
    for kind in kinds:
        seconds = workers[kind].seconds
        middle = statistics.median(seconds)
        share = statistics.median(flops / s / p for s, p in zip(seconds, peaks, strict=True))
        ratios = sorted(theirs / mine for theirs, mine in zip(seconds, ours, strict=True))
        ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"{kind:24}{tokens / middle:>12,.0f}{middle * 1e3:>10.1f}{share:>12.0%} {workers[kind].memory:>11,.0f}   "
              f"{ratio}", flush=True)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", help="a clone of nanoGPT")
    parser.add_argument("--no-hf", dest="hf", action="store_false", help="leave out Hugging Face's GPT-2")
    parser.add_argument("--hf-trainer", action="store_true", help="also Hugging Face's Trainer")
    parser.add_argument("--litgpt", nargs="?", const="", help="also litgpt, in this folder or installed")
    parser.add_argument("--compile", action="store_true", help="also minigpt with training.compile=true")
    parser.add_argument("--float8", action="store_true", help="also minigpt compiled with training.float8=true")
    parser.add_argument("--levels", action="store_true", help="also minigpt's levels of activation checkpointing")
    parser.add_argument("--sizes", nargs="+", default=["0.8M", "10.7M", "124M"], choices=SIZES)
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
