"""Preparing text for training, beside the libraries' bare encoding: tokens a second and peak memory.

    python benchmarks/prepare.py DATA [--turns 5]

DATA is the folder of real test data (classic_books/train.txt.gz and gpt2_bpe in it). minigpt reads, decompresses,
splits into documents, encodes, hashes and writes shards; `tokenizers` and `tiktoken` get the text as a list of strings
in memory, cut into pieces so that all cores are busy, and do nothing but encode. All use GPT-2's tokenizer and the same
cores, in turns, each turn in a fresh process; making the tokenizer is not counted for anyone (minigpt's is made ready
when the first text of some length comes). The machine must be quiet.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = {"5 MB": 5_000_000, "50 MB": 50_000_000}  # bytes of text; the second is more than there is: all of it
PIECE = 1 << 16  # characters of a piece for the libraries
KINDS = ["minigpt", "tokenizers", "tiktoken"]


def pieces_of(path):
    """The text in pieces that may be encoded one by one."""
    from minigpt.tokenizer.patterns import safe_pieces

    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return [p for document in file.read().split("<|endoftext|>") for p in safe_pieces(document, PIECE)]


def prepare(task):
    from minigpt.config import DataConfig
    from minigpt.data import prepare
    from minigpt.tokenizer import load_gpt2

    tokenizer = load_gpt2(Path(task["gpt2"]))
    tokenizer.encode_arrays(["To be, or not to be, that is the question.\n" * 20_000])
    data = DataConfig.model_validate({"train": task["text"], "workers": task["cores"]})
    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        prepared = prepare(data, tokenizer, cache=Path(cache))
        seconds = time.perf_counter() - began
        return len(prepared.train) + len(prepared.val), seconds


def tokenizers_batch(task):
    os.environ["RAYON_NUM_THREADS"] = str(task["cores"])
    from minigpt.tokenizer import load_gpt2

    with tempfile.TemporaryDirectory() as folder:
        load_gpt2(Path(task["gpt2"])).save(Path(folder))
        import tokenizers

        engine = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    pieces = pieces_of(task["text"])
    began = time.perf_counter()
    batch = engine.encode_batch_fast(pieces, add_special_tokens=False)
    return sum(len(encoding) for encoding in batch), time.perf_counter() - began


def tiktoken_batch(task):
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    ranks = data_gym_to_mergeable_bpe_ranks(f"{task['gpt2']}/vocab.bpe", f"{task['gpt2']}/encoder.json")
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"  # tiktoken_ext's r50k
    engine = tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256})
    pieces = pieces_of(task["text"])
    began = time.perf_counter()
    batch = engine.encode_ordinary_batch(pieces, num_threads=task["cores"])
    return sum(map(len, batch)), time.perf_counter() - began


def work(task):
    """One turn, in a process of its own."""
    contestant = {"minigpt": prepare, "tokenizers": tokenizers_batch, "tiktoken": tiktoken_batch}[task["kind"]]
    tokens, seconds = contestant(task)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    print(json.dumps({"tokens": tokens, "seconds": seconds, "memory": peak}))


def turn(task):
    done = subprocess.run(
        [sys.executable, __file__, "--work", json.dumps(task)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def contest(label, path, args):
    task = {"text": str(path), "gpt2": str(args.data / "gpt2_bpe"), "cores": args.cores}
    found = {kind: [] for kind in KINDS}
    for _ in range(args.turns):
        for kind in KINDS:
            found[kind].append(turn(task | {"kind": kind}))
    speeds = {kind: [f["tokens"] / f["seconds"] for f in turns] for kind, turns in found.items()}
    print(f"\n{label}, {args.cores} cores, {args.turns} turns")
    print(f"{'':12}{'tokens':>12}{'seconds':>9}{'tokens/s':>12}{'memory MB':>11}   minigpt's speed relative to it")
    for kind, turns in found.items():
        ratios = sorted(mine / theirs for mine, theirs in zip(speeds["minigpt"], speeds[kind], strict=True))
        ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        seconds = statistics.median(f["seconds"] for f in turns)
        memory = max(f["memory"] for f in turns)
        speed = statistics.median(speeds[kind])
        print(f"{kind:12}{turns[0]['tokens']:>12,}{seconds:>9.2f}{speed:>12,.0f}{memory:>11,.0f}   {ratio}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="the folder of real test data")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--cores", type=int, default=cores)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(json.loads(args.work))
        return
    if args.data is None:
        parser.error("DATA is needed: the folder with classic_books and gpt2_bpe")
    with tempfile.TemporaryDirectory() as folder:
        for label in args.sizes:
            path = Path(folder) / f"{label[:2].strip()}.txt.gz"
            with gzip.open(args.data / "classic_books" / "train.txt.gz") as whole, gzip.open(path, "wb", 6) as part:
                part.write(whole.read(SIZES[label]).decode("utf-8", "ignore").encode())
            contest(label, path, args)


if __name__ == "__main__":
    main()
