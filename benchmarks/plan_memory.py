"""What `minigpt plan` says a run takes beside what the run then took, for different configs on the CPU.

    python benchmarks/plan_memory.py [--only NAME...] [--json]

Each run is a process of its own (or two): some steps of a small text, in one thread, with a checkpoint in the middle,
and `memory/peak_mb` of its metrics.jsonl at the end. The plan is made by the command, before. Two constants of
the plan were fitted to the first five configs, those of meshes to the ones with a mesh; the "unseen" have had no part.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

COMMON = [
    "data.train={demo: stories, documents: 2000}",
    "tokenizer.kind=bpe",
    "tokenizer.vocab_size=1024",
    "training.max_steps=6",
    "schedule.warmup_steps=0",
    "evaluation.every_steps=null",
    "evaluation.max_tokens=2048",
    "checkpoint.every_steps=2",
    "run.threads=1",
    "run.device=cpu",
    "loggers.every_steps=1",
    "loggers.console=quiet",
]
CONFIGS = {
    "0.8M, fp32, 64 x 256": ["shakespeare-char", "model.context_length=256", "training.batch_tokens=16384",
                             "training.micro_batch=64", "model.vocab_size=1024"],
    "demo, bf16, 2 x 16 rows": ["demo", "training.batch_tokens=8192", "training.micro_batch=16",
                                "model.vocab_size=8192"],
    "30M, bf16, Muon, documents apart": ["qwen3-style", "model.n_layer=8", "model.n_embd=512", "model.n_head=8",
                                   "model.n_kv_head=4", "model.context_length=512", "training.batch_tokens=8192",
                                   "training.micro_batch=4", "training.precision=bf16", "training.compile=false",
                                   "optimizer.name=muon", "data.document_mask=true", "model.vocab_size=8192"],
    "experts, fp32, checkpointing": ["mixtral-style", "model.n_layer=4", "model.n_embd=256", "model.n_head=4",
                                     "model.n_kv_head=2", "model.context_length=256", "training.batch_tokens=8192",
                                     "training.micro_batch=8", "training.precision=fp32", "training.compile=false",
                                     "training.activation_checkpointing=full", "model.vocab_size=4096"],
    "124M, bf16, 2 x 512": ["gpt2-124m", "model.context_length=512", "training.batch_tokens=2048",
                            "training.micro_batch=2", "training.compile=false", "model.vocab_size=50257"],
    "unseen: 10.7M, fp32, 16 x 256": ["shakespeare-char", "model.n_layer=6", "model.n_head=6", "model.n_embd=384",
                                      "model.context_length=256", "training.batch_tokens=8192",
                                      "training.micro_batch=16", "model.vocab_size=1024"],
    "unseen: 42M, fp32, sandwich, GeGLU, window": [
        "gemma-style", "model.n_layer=6", "model.n_embd=512", "model.n_head=8", "model.n_kv_head=4",
        "model.context_length=512", "model.attention_window=128", "training.batch_tokens=4096",
        "training.micro_batch=4", "training.precision=fp32", "training.compile=false", "model.vocab_size=32768"],
    "unseen: 49M, bf16, latent, experts": [
        "deepseek-style", "model.n_layer=6", "model.n_embd=384", "model.n_head=6", "model.context_length=256",
        "training.batch_tokens=4096", "training.micro_batch=8", "training.compile=false", "model.vocab_size=8192"],
    "unseen: 350M, bf16, checkpointing": [
        "gpt2-medium", "model.context_length=256", "training.batch_tokens=512", "training.micro_batch=1",
        "training.activation_checkpointing=full", "training.compile=false", "model.vocab_size=50257"],
    "unseen: 124M, fp32, EMA, no accumulation": [
        "gpt2-124m", "model.context_length=256", "training.batch_tokens=1024", "training.micro_batch=4",
        "training.precision=fp32", "optimizer.ema_decay=0.99", "training.compile=false", "model.vocab_size=50257"],
    "110M, bf16, fsdp of 2": [
        "gpt2-124m", "model.context_length=256", "training.batch_tokens=4096", "training.micro_batch=4",
        "distributed.mesh={fsdp: 2}", "training.compile=false", "model.vocab_size=32768"],
    "unseen: 30M, fp32, dp of 2": [
        "qwen3-style", "model.n_layer=8", "model.n_embd=512", "model.n_head=8", "model.n_kv_head=4",
        "model.context_length=256", "training.batch_tokens=8192", "training.micro_batch=8", "training.precision=fp32",
        "distributed.mesh={dp: 2}", "training.compile=false", "model.vocab_size=8192"],
    "24M, fp32, tp of 2": [
        "llama-style", "model.n_layer=6", "model.n_embd=512", "model.n_head=8", "model.n_kv_head=4",
        "model.context_length=512", "training.batch_tokens=4096", "training.micro_batch=4",
        "training.precision=fp32", "distributed.mesh={tp: 2}", "training.compile=false", "model.vocab_size=4096"],
    "unseen: 16M, bf16, tp of 2": [
        "qwen3-style", "model.n_layer=6", "model.n_embd=448", "model.n_head=8", "model.n_kv_head=4",
        "model.context_length=512", "training.batch_tokens=8192", "training.micro_batch=8",
        "training.precision=bf16", "distributed.mesh={tp: 2}", "training.compile=false", "model.vocab_size=2048"],
    "unseen: 14M, fp32, pp of 2": [
        "shakespeare-char", "model.n_layer=6", "model.n_head=6", "model.n_embd=384", "model.context_length=256",
        "training.batch_tokens=8192", "training.micro_batch=8", "distributed.mesh={pp: 2}", "model.vocab_size=8192"],
    "unseen: 15M, fp32, cp of 2": [
        "shakespeare-char", "model.n_layer=6", "model.n_head=8", "model.n_embd=448", "model.context_length=512",
        "training.batch_tokens=8192", "training.micro_batch=8", "distributed.mesh={cp: 2}", "model.vocab_size=1024"],
    "34M, bf16, pp of 2": [
        "llama-style", "model.n_layer=8", "model.n_embd=512", "model.n_head=8", "model.n_kv_head=4",
        "model.context_length=512", "training.batch_tokens=8192", "training.micro_batch=4",
        "training.precision=bf16", "distributed.mesh={pp: 2}", "training.compile=false", "model.vocab_size=8192"],
    "5M, fp32, fsdp of 2": [
        "shakespeare-char", "model.n_layer=6", "model.n_head=4", "model.n_embd=256", "model.context_length=256",
        "training.batch_tokens=8192", "training.micro_batch=8", "distributed.mesh={fsdp: 2}",
        "model.vocab_size=1024"],
    "68M, bf16, tp of 2": [
        "gpt2-124m", "model.n_layer=6", "model.context_length=256", "training.batch_tokens=4096",
        "training.micro_batch=8", "distributed.mesh={tp: 2}", "training.compile=false", "model.vocab_size=32768"],
    "30M, bf16, cp of 2": [
        "qwen3-style", "model.n_layer=8", "model.n_embd=512", "model.n_head=8", "model.n_kv_head=4",
        "model.context_length=1024", "training.batch_tokens=8192", "training.micro_batch=4",
        "training.precision=bf16", "distributed.mesh={cp: 2}", "training.compile=false", "model.vocab_size=8192"],
    "68M, fp32, pp of 2": [
        "gpt2-124m", "model.n_layer=6", "model.context_length=256", "training.batch_tokens=4096",
        "training.micro_batch=4", "training.precision=fp32", "distributed.mesh={pp: 2}", "training.compile=false",
        "model.vocab_size=32768"],
}  # fmt: skip


def minigpt(*words):
    command = [sys.executable, "-m", "minigpt", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def compare(words):
    """(planned, measured) in MB."""
    made = json.loads(minigpt("plan", *words, *COMMON, "--json"))
    with tempfile.TemporaryDirectory() as folder:
        several = ["--nproc", "2"] if any("mesh" in word for word in words) else []
        minigpt("train", *words, *COMMON, "--run-dir", f"{folder}/run", *several)
        lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    measured = max(line["memory/peak_mb"] for line in lines if "memory/peak_mb" in line)
    return made["estimates"][0]["memory_bytes"] / 1e6, measured


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CONFIGS), default=list(CONFIGS), metavar="NAME")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = []
    for name in args.only:
        planned, measured = compare(CONFIGS[name])
        found.append({"config": name, "planned_mb": round(planned), "measured_mb": round(measured)})
        if not args.json:
            print(f"{name:42} planned {planned:6.0f} MB, measured {measured:6.0f} MB: {planned / measured - 1:+.1%}")
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
