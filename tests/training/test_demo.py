"""The demo: its judge, its baseline, and the whole command on a model far too small to be right."""

import itertools
import math
from collections import Counter
from pathlib import Path

import pytest

import minigpt.training.demo as demo
from minigpt.config import load_config
from minigpt.data.demo import stories
from minigpt.inference import load
from minigpt.training.setup import assemble

TINY = [
    "model.n_layer=1", "model.n_head=1", "model.n_embd=16", "model.n_inner=16", "training.max_steps=3",
    "training.batch_tokens=512", "training.micro_batch=2", "tokenizer.vocab_size=512", "evaluation.max_tokens=256",
    "run.threads=1", "data.train={demo: stories, documents: 300}", "loggers.console=quiet",
]  # fmt: skip


def test_the_judge_counts_consistent_stories_and_those_not_in_the_training_text() -> None:
    known, new = list(stories(seed=0, count=20)), list(stories(seed=1, count=10))
    found = demo.judge([*known, *new, "Anna had had.", ""], set(known))
    assert found.share == 30 / 32
    assert found.consistent == [*known, *new]
    assert found.novel == 10


def test_the_whole_demo_runs_and_says_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "load_config", lambda name: load_config(name, TINY))
    monkeypatch.setattr(demo, "STORIES", 4)
    monkeypatch.setattr(demo, "LONGEST", 12)
    monkeypatch.setenv("MINIGPT_COMMAND", "python3 start.py")
    assert demo.run_demo(tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "bigram baseline" in said and "temperature 0.3" in said
    assert f"python3 start.py generate {tmp_path / 'run'}" in said.replace("\n", "")
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()

    # The baseline draws each token as often as it follows the one before in the training text.
    loaded = load(tmp_path / "run")
    config, _ = load_config("demo", TINY)
    assert loaded.tokenizer is not None
    train = assemble(config, tokenizer=loaded.tokenizer).data.train
    ids = train.tokens(0, len(train)).tolist()
    starts = Counter(b for a, b in itertools.pairwise(ids) if a == loaded.tokenizer.eot_id)
    monkeypatch.setattr(demo, "LONGEST", 1)
    drawn = Counter(demo.bigram_stories(train, loaded, 2000))
    word, count = starts.most_common(1)[0]
    share = count / starts.total()
    told = drawn[loaded.tokenizer.decode([word]).strip()] / 2000
    assert abs(told - share) < 5 * math.sqrt(share * (1 - share) / 2000) + 1e-9  # five standard errors
