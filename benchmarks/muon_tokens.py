"""Claim: with Muon a small GPT reaches tuned AdamW's final validation loss from fewer tokens.

    python benchmarks/muon_tokens.py TEXT VAL --out FOLDER [--part 1M long 4M] [--minutes 80]

TEXT, VAL: files of English prose (docs/LOG.md: classic_books). One byte-level BPE of 4,096, rows of 128 tokens, 16 of
them a step, bf16 arithmetic, one thread. The protocol, as docs/LOG.md states it:

1. AdamW is tuned on seed 1 (learning rate by factors of 2 until the best is inside the grid, then beta2, the
   embeddings' rate, and that of the matrices again) at the full budget, Muon (its rate, then that of the rest) at two
   thirds of it; then further changes to Muon's recipe, one at a time at half the budget, each kept if it lowers the
   loss by 0.01 at least.
2. Seeds 11, 12 and 13, which no choice has seen, train AdamW at the full budget and the recipes at fractions of it,
   each run with its own whole schedule. The tokens that a recipe needs to reach the loss of AdamW of the same seed
   (equal order of rows) are read off between two fractions, linearly in the logarithm of the tokens; where the first
   two do not enclose it, others follow by factors of 1.25.
3. The same with four times the steps, and with four times the parameters: the learning rates of AdamW and of the recipe
   are looked at again, Muon alone takes the recipe's.

Every trial is a line of FOLDER/trials.jsonl; what is there is not run again, so the script can be stopped at any time,
and several may work on the same folder. It ends when all is done, or else, with exit status 3, after the trial in which
--minutes have passed (0: one trial).
"""

import argparse
import itertools
import json
import math
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from minigpt.config import RequestError, WorkError, load_config
from minigpt.training import train

ROWS, CONTEXT = 16, 128
SMALL = {"n_layer": 5, "n_head": 4, "n_embd": 128}
SIZES = {"1M": SMALL, "long": SMALL, "4M": {"n_layer": 5, "n_head": 8, "n_embd": 256}}
STEPS = {"1M": 384, "long": 1536, "4M": 384}
"""The full budget: AdamW's steps."""
COMPILED = ("long", "4M")
"""These are run with torch.compile."""
SEEDS = (11, 12, 13)
KEPT = 0.01
"""A change stays if it lowers the loss by this."""

ADAMW = {"optimizer.name": "adamw", "optimizer.lr": 4e-3, "optimizer.betas": [0.9, 0.95]}
CHANGES = {
    "normalise": {"optimizer.muon.normalise": True},
    "value embeddings": {"model.speed.value_embeddings": "all"},
    "own small head": {"model.tie_embeddings": False, "model.init_head_std": 0.001},
    "zero residual": {"model.init_residual": "zero"},
    "smear": {"model.speed.smear": True},
    "theta 1000": {"model.rope_theta": 1000.0},
    "head lr / 4": {"optimizer.groups": [{"match": "head.weight", "lr_scale": 0.25}]},
    "head lr x2": {"optimizer.groups": [{"match": "head.weight", "lr_scale": 2.0}]},
    "muon lr x2": {"optimizer.muon.lr": 8e-3},
    "muon lr / 2": {"optimizer.muon.lr": 2e-3},
    "rest lr / 2": {"optimizer.lr": 3.2e-2},
    "residual scalars": {"model.speed.residual_scalars": True},
    "embedding norm": {"model.embedding_norm": True},
    "backout": {"model.speed.backout": True},
    "relu2": {"model.mlp": "relu2"},
    "softcap 15": {"model.logit_softcap": 15.0},
    "momentum 0.9": {"optimizer.muon.momentum": 0.9},
    "cautious": {"optimizer.muon.cautious": True},
    "wsd 65 %": {"schedule.kind": "wsd", "schedule.decay_fraction": 0.65},
}
"""What is tried on top of Muon, in this order."""


class Queue:
    """Trials, each run once: a recipe (dotted keys) of a size, for so many steps with a seed."""

    def __init__(self, folder, text, val, minutes):
        self.folder, self.text, self.val = folder, text, val
        self.end, self.new = time.monotonic() + 60 * minutes, 0
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "trials.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.known = {self.key(**trial["asked"]): trial["loss"] for trial in map(json.loads, lines)}

    def key(self, size, recipe, steps, seed):
        return json.dumps([size, recipe, steps, seed], sort_keys=True)

    def loss(self, why, size, recipe, steps, seed=1):
        """The final validation loss in nats a token; infinite where the run failed."""
        asked = {"size": size, "recipe": recipe, "steps": steps, "seed": seed}
        key = self.key(**asked)
        if key not in self.known:
            if self.new and time.monotonic() > self.end:
                raise SystemExit(3)
            self.new += 1
            began = time.monotonic()
            loss, failure = self.run(**asked)
            line = {"why": why, "loss": loss, "seconds": round(time.monotonic() - began, 1), "asked": asked}
            with self.path.open("a") as file:
                file.write(json.dumps(line | ({"failure": failure} if failure else {})) + "\n")
            print(f"{size} {why:32} steps {steps} seed {seed}: {loss:.4f} ({line['seconds']} s)", flush=True)
            self.known[key] = loss
        return self.known[key]

    def run(self, size, recipe, steps, seed):
        tree = {
            "run": {"device": "cpu", "threads": 1, "seed": seed},
            "model": SIZES[size] | {"context_length": CONTEXT, "init_std": 0.05},
            "tokenizer": {"kind": "bpe", "vocab_size": 4096},
            "data": {"train": str(self.text), "val": str(self.val)},
            "optimizer": {"weight_decay": 0.1},
            "schedule": {"kind": "linear", "warmup_steps": max(1, steps // 20)},
            "training": {
                "max_steps": steps,
                "batch_tokens": ROWS * CONTEXT,
                "micro_batch": ROWS,
                "precision": "bf16",
                "compile": size in COMPILED,
            },
            "evaluation": {"every_steps": None, "max_tokens": 131072},
            "checkpoint": {"every_steps": None, "every_minutes": None},
            "loggers": {"every_steps": 50, "console": "quiet"},
        }
        for dotted, value in recipe.items():
            *sections, name = dotted.split(".")
            node = tree
            for section in sections:
                node = node.setdefault(section, {})
            node[name] = value
        folder = Path(tempfile.mkdtemp(prefix="muon-tokens-"))
        try:
            train(load_config(tree, {})[0], run_dir=folder / "run")
            lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
            loss = next(line["val/loss"] for line in reversed(lines) if "val/loss" in line)
            return (loss, "") if math.isfinite(loss) else (math.inf, "not finite")
        except (RequestError, WorkError) as error:  # a trial that fails is a result too
            return math.inf, f"{type(error).__name__}: {error}"
        finally:
            shutil.rmtree(folder)

    def tuned(self, why, size, recipe, name, values, steps):
        """The recipe with the best of `values` (ascending, by factors of 2), which go on beyond the edges."""
        return self.best(f"{why} {name}", size, lambda value: recipe | {name: value}, values, steps)

    def best(self, why, size, recipe_of, values, steps):
        """The best of recipe_of(value); `values` as for tuned."""
        values = list(values)
        while True:
            losses = {v: self.loss(f"{why} {v:g}", size, recipe_of(v), steps) for v in values}
            best = min(losses, key=losses.get)
            if best == values[-1]:
                values.append(best * 2)
            elif best == values[0]:
                values.insert(0, best / 2)
            else:
                return recipe_of(best)


def tuned_adamw(queue, size, lrs):
    """Its learning rate and betas, as Muon's search begins from them, and the recipe after all of its own searches."""
    steps = STEPS[size]
    first = queue.tuned("adamw", size, ADAMW, "optimizer.lr", lrs, steps)
    other = first | {"optimizer.betas": [0.9, 0.98]}
    first = recipe = min(first, other, key=lambda one: queue.loss("adamw betas 0.9, 0.98", size, one, steps))
    for scale in (2.0, 4.0, 8.0):
        other = first | {"optimizer.groups": [{"match": "embed.weight", "lr_scale": scale}]}
        if queue.loss(f"adamw embed x{scale:g}", size, other, steps) > queue.loss("", size, recipe, steps):
            break
        recipe = other
    # the rate of all was found while the embeddings' was tied to it: is that of the matrices lower now?
    while "optimizer.groups" in recipe:
        lr, scale = recipe["optimizer.lr"] / 2, recipe["optimizer.groups"][0]["lr_scale"] * 2
        other = first | {"optimizer.lr": lr, "optimizer.groups": [{"match": "embed.weight", "lr_scale": scale}]}
        why = f"adamw {lr:g} embed x{scale:g}"
        if queue.loss(why, size, other, steps) > queue.loss("", size, recipe, steps):
            break
        recipe = other
    return first, recipe


def tuned_muon(queue, size, first, lrs):
    """Learning rate of the matrices with AdamW's first one for the rest, then that of the rest."""
    steps = round(STEPS[size] / 1.5)
    recipe = queue.tuned("muon", size, first | {"optimizer.name": "muon"}, "optimizer.muon.lr", lrs, steps)
    lr = first["optimizer.lr"]
    return queue.tuned("muon, rest", size, recipe, "optimizer.lr", [lr / 2, lr, lr * 2], steps)


def with_changes(queue, size, recipe):
    """What of CHANGES helps at half the budget, one after the other."""
    steps = STEPS[size] // 2
    for name, change in CHANGES.items():
        if queue.loss(f"+ {name}", size, recipe | change, steps) < queue.loss("muon", size, recipe, steps) - KEPT:
            recipe = recipe | change
    return recipe


def ratios(queue, size, adamw, recipe, why, fractions):
    """Tokens of AdamW over tokens of the recipe at equal loss, by seed; NaN where none encloses it."""
    found = {}
    for seed in SEEDS:
        target = queue.loss("adamw, seeds", size, adamw, STEPS[size], seed)
        tried = {}
        for fraction in fractions:
            tried[fraction] = queue.loss(f"{why}, seeds", size, recipe, round(STEPS[size] / fraction), seed)
        while min(tried.values()) > target and min(tried) > 0.5:
            fraction = min(tried) / 1.25
            tried[fraction] = queue.loss(f"{why}, seeds", size, recipe, round(STEPS[size] / fraction), seed)
        while max(tried.values()) < target and max(tried) < 8:
            fraction = max(tried) * 1.25
            tried[fraction] = queue.loss(f"{why}, seeds", size, recipe, round(STEPS[size] / fraction), seed)
        found[seed] = math.nan
        for (low, better), (high, worse) in itertools.pairwise(sorted(tried.items())):
            if better <= target <= worse:
                share = (target - better) / (worse - better)
                found[seed] = math.exp((1 - share) * math.log(low) + share * math.log(high))
    values = list(found.values())
    print(f"{size} {why}: {found} mean {statistics.fmean(values):.3f} sd {statistics.stdev(values):.3f}", flush=True)
    return found


def with_rates(recipe, lr, embed, head=None):
    """AdamW's recipe with these rates of the matrices, of the tables, and of an own head."""
    rates = {"*embed.weight" if head else "embed.weight": embed / lr} | ({"head.weight": head / lr} if head else {})
    groups = [{"match": match, "lr_scale": scale} for match, scale in rates.items()]
    return recipe | {"optimizer.lr": lr, "optimizer.groups": groups}


def at_1m(queue):
    first, adamw = tuned_adamw(queue, "1M", [2e-3, 4e-3, 8e-3])
    muon = tuned_muon(queue, "1M", first, [2e-3, 4e-3, 8e-3])
    ratios(queue, "1M", adamw, muon, "muon", (1.25, 1.75))
    best = with_changes(queue, "1M", muon)
    print(f"the recipe: {best}", flush=True)
    ratios(queue, "1M", adamw, best, "recipe", (1.75, 2.5))
    control(queue, "1M", adamw, best)
    return adamw, muon, best


def control(queue, size, adamw, best):
    """How much of it is the network's: AdamW with that, its tables at the embeddings' rate, its head's rate tuned."""
    network = {key: value for key, value in best.items() if key.startswith("model.")}
    lr, steps = adamw["optimizer.lr"], STEPS[size]
    embed = lr * adamw["optimizer.groups"][0]["lr_scale"]
    recipe = queue.best(
        "adamw, recipe's network, head",
        size,
        lambda head: with_rates(adamw | network, lr, embed, head),
        [embed / 4, embed / 2, embed],
        steps,
    )
    ratios(queue, size, adamw, recipe, "adamw, recipe's network", (1.0, 1.25))


def elsewhere(queue, size, adamw, muon, best):
    """The recipes of 1M at another size or budget, where the learning rates are looked at again."""
    lr, steps = adamw["optimizer.lr"], STEPS[size]
    embed = lr * adamw["optimizer.groups"][0]["lr_scale"]
    adamw = queue.best("adamw", size, lambda lr: with_rates(adamw, lr, embed), [lr / 2, lr], steps)
    steps, lr, rest = round(steps / 1.5), best["optimizer.muon.lr"], best["optimizer.lr"]
    best = queue.tuned("recipe", size, best, "optimizer.muon.lr", [lr / 2, lr], steps)
    best = queue.tuned("recipe, rest", size, best, "optimizer.lr", [rest / 2, rest], steps)
    muon = muon | {key: best[key] for key in ("optimizer.muon.lr", "optimizer.lr")}
    ratios(queue, size, adamw, best, "recipe", (1.2, 1.5))
    ratios(queue, size, adamw, muon, "muon", (1.0, 1.25))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", nargs="*", choices=("1M", "long", "4M"), default=("1M", "long", "4M"))
    parser.add_argument("--minutes", type=float, default=80)
    arguments = parser.parse_args()
    queue = Queue(arguments.out, arguments.text, arguments.val, arguments.minutes)
    recipes = at_1m(queue)
    for size in arguments.part:
        if size != "1M":
            elsewhere(queue, size, *recipes)


if __name__ == "__main__":
    sys.exit(main())
