"""Runs that stream: the same as prepared ones if nothing is shuffled, and the same however often they are stopped."""

import contextlib
import json
import math
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minigpt.config import Config, RequestError, config_yaml
from minigpt.objectives import PretrainObjective
from minigpt.storage import list_checkpoints
from minigpt.tokenizer import train_bpe
from minigpt.training.journal import RowJournal


def corpus(path: Path, documents: int = 60, seed: int = 0) -> str:
    """JSON lines of short documents, about 25 characters each."""
    draw = random.Random(seed)
    texts = ["".join(draw.choice("abcdefgh \n") for _ in range(draw.randrange(1, 50))) + "." for _ in range(documents)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def streaming(kit, tmp_path):
    """`streaming(train, data=..., **changes)`: a config with a tokenizer that is there, so that only training reads."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    train_bpe([kit.text()], vocab_size=260, pattern="gpt2", special_tokens=["<|endoftext|>"]).save(folder)

    def made(train: Any, data: dict[str, Any] | None = None, **changes: Any) -> Config:
        data = {"shuffle_buffer": 7} if data is None else data
        held_out = {} if "val" in data else {"val_documents": 4}
        tree = {"train": train, "streaming": True, "workers": 1} | held_out | data
        return kit.config(data=tree, tokenizer={"kind": "file", "path": str(folder)}, **changes)

    return made


def losses(kit, folder: Path) -> list[Any]:
    keys = ("step", "train/loss", "train/grad_norm", "val/loss", "val/bpb")
    return [{key: line[key] for key in keys if key in line} for line in kit.metrics(folder)]


MIXTURE = [({"weight": 2, "name": "web"}, 50), ({"weight": 1, "name": "books"}, 30), ({"weight": 1, "name": "code"}, 9)]


def mixture(folder: Path) -> list[dict[str, Any]]:
    return [{"path": corpus(folder / f"{source['name']}.jsonl", count, count)} | source for source, count in MIXTURE]


@pytest.mark.parametrize("kind", ["jsonl", "text", "mixture", "masked"])
def test_a_streaming_and_a_prepared_run_have_the_same_losses(tmp_path, kit, streaming, kind) -> None:
    train: Any = corpus(tmp_path / "corpus.jsonl")
    if kind == "text":
        train = {"text": kit.text()}
    if kind == "mixture":
        train = mixture(tmp_path)
    data = {"shuffle": False, "val": {"text": kit.text(300, seed=5)}, "document_mask": kind == "masked"}
    for name in ("stream", "prepared"):
        settings = streaming(
            train, data=data | {"streaming": name == "stream"}, training__max_steps=30, checkpoint__every_steps=30
        )
        kit.train(settings, tmp_path / name)
    assert losses(kit, tmp_path / "stream") == losses(kit, tmp_path / "prepared")
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("stream", "prepared")]
    assert weights[0] == weights[1]
    for line in losses(kit, tmp_path / "stream"):
        assert all(math.isfinite(value) for value in line.values())


LAYOUTS: dict[str, dict[str, Any]] = {
    "one source": {},
    "all in the buffer": {"data": {"shuffle_buffer": 1000, "document_mask": True}},
    "long": {"training__max_steps": 30, "checkpoint__every_steps": 7, "evaluation__every_steps": 20},
}


def whole_and_killed(tmp_path, kit, chaos, killed, settings, parts) -> dict[str, Any]:
    """A run killed at some moments and resumed ends with the bytes of one that was left alone."""
    expected, moments = kit.measure(chaos, settings, tmp_path)
    for part in range(parts):
        at = (2 * part + 1) * len(moments) // (2 * parts)
        folder = tmp_path / f"killed-{part}"
        chaos.reset(at)
        with contextlib.suppress(killed):
            kit.train(settings, folder)
        chaos.reset()
        assert kit.train(settings, folder).exit_status == 0
        assert kit.outcome(folder) == expected, f"killed at moment {at}"
    return expected


@pytest.mark.parametrize("layout", ["one source", "all in the buffer", pytest.param("long", marks=pytest.mark.slow)])
def test_killed_and_resumed(tmp_path, kit, streaming, chaos, killed, layout) -> None:
    settings = streaming(corpus(tmp_path / "corpus.jsonl", documents=20), **LAYOUTS[layout])
    outcome = whole_and_killed(tmp_path, kit, chaos, killed, settings, 2)
    (source,) = outcome["state"]["trainer"]["stream"]["sources"]
    assert source["epoch"] >= (4 if layout == "long" else 0)


@pytest.mark.slow
def test_a_mixture_killed_and_resumed(tmp_path, kit, streaming, chaos, killed) -> None:
    stages = [{"from_fraction": 0.5, "weights": {"books": 1, "code": 3}}]
    settings = streaming(mixture(tmp_path), data={"shuffle_buffer": 5, "stages": stages}, training__max_steps=12)
    outcome = whole_and_killed(tmp_path, kit, chaos, killed, settings, 2)
    last = [line for line in outcome["metrics"] if "data/web/tokens" in line][-1]
    assert [last[f"data/{name}/tokens"] / 16 for name in ("web", "books", "code")] == [12, 6 + 6, 6 + 18]
    assert last["data/web/epoch"] == 0 and last["data/code/epoch"] > 1


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed_at_many_moments(tmp_path, kit, streaming, chaos, killed, layout) -> None:
    settings = streaming(corpus(tmp_path / "corpus.jsonl", documents=20), **LAYOUTS[layout])
    whole_and_killed(tmp_path, kit, chaos, killed, settings, 40)


@pytest.fixture
def poison(monkeypatch):
    """`poison(rows)` makes these training rows give a NaN loss."""

    def spoil(rows) -> None:
        make, training_step = PretrainObjective.row, PretrainObjective.training_step

        def row(self, index):
            made = make(self, index)
            return made | {"bad": np.full_like(made["targets"], index in rows)}

        def step(self, model, batch):
            is_bad = bool(batch.pop("bad").any())
            loss, valid, extra = training_step(self, model, batch)
            return (loss * math.nan if is_bad else loss), valid, extra

        monkeypatch.setattr(PretrainObjective, "row", row)
        monkeypatch.setattr(PretrainObjective, "training_step", step)

    return spoil


@pytest.mark.slow
def test_bad_steps_are_undone_and_their_rows_left_out(
    tmp_path, kit, streaming, poison, monkeypatch, chaos, killed
) -> None:
    """As if the bad rows had never been there: a run that counts without them is the same; so is one that is killed."""
    poison(range(12, 20))
    settings = streaming(
        corpus(tmp_path / "corpus.jsonl", documents=12), training__max_bad_steps=2, training__max_steps=14
    )
    outcome = whole_and_killed(tmp_path, kit, chaos, killed, settings, 2)
    assert outcome["state"]["trainer"]["restorations"] == 1
    rows = [row for row in range(100) if row not in range(12, 20)]
    monkeypatch.setattr(RowJournal, "rows", lambda self, first, count: rows[first : first + count])
    kit.train(settings, tmp_path / "without")
    assert kit.outcome(tmp_path / "without")["files"] == outcome["files"]


def test_bad_from_the_first_step_on(tmp_path, kit, streaming, poison) -> None:
    """There is no checkpoint to go back to: the stream begins anew."""
    poison(range(8))
    settings = streaming(corpus(tmp_path / "corpus.jsonl"), training__max_bad_steps=2)
    kit.train(settings, tmp_path / "run")
    (position,) = trainer_state(tmp_path / "run")["stream"]["sources"]
    assert position["next_row"] == 8 + 24


def trainer_state(folder: Path) -> dict[str, Any]:
    return json.loads((list_checkpoints(folder)[-1] / "trainer_state.json").read_text())["trainer"]


@pytest.mark.slow
def test_a_signal_between_two_checkpoints(tmp_path, kit, streaming, chaos) -> None:
    settings = streaming(corpus(tmp_path / "corpus.jsonl"), checkpoint__every_steps=100)
    expected, moments = kit.measure(chaos, settings, tmp_path)
    for number, at in enumerate(range(len(moments) // 8, len(moments), len(moments) // 4)):
        chaos.reset(at, signal.SIGTERM)
        assert kit.train(settings, tmp_path / f"run-{number}").exit_status in (0, 143)
        chaos.reset()
        kit.train(settings, tmp_path / f"run-{number}")
        assert kit.outcome(tmp_path / f"run-{number}") == expected


@pytest.mark.slow
def test_killed_by_the_system(tmp_path, kit, streaming, minigpt) -> None:
    """kill -9 of a real process, again and again."""
    train = corpus(tmp_path / "corpus.jsonl")
    settings = streaming(train, training__max_steps=60, checkpoint__every_steps=5, evaluation__every_steps=30)
    (tmp_path / "settings.yaml").write_text(config_yaml(settings))
    command = ("train", tmp_path / "settings.yaml", "--run-dir")
    assert minigpt(*command, tmp_path / "whole").wait() == 0
    folder, kills = tmp_path / "killed", 0
    for wanted in (10, 25, 40):
        process = minigpt(*command, folder)
        process.wait_for(lambda: any((folder / "checkpoints").glob(f"step-{wanted:08}")))  # noqa: B023
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills
    assert minigpt(*command, folder).wait() == 0
    assert kit.outcome(folder) == kit.outcome(tmp_path / "whole")


@pytest.mark.parametrize("origin", ["stream", "prepared"])
def test_a_new_run_from_a_checkpoint(tmp_path, kit, streaming, origin) -> None:
    """It goes on where that one was, also from one that was prepared: then the rows before it are passed over."""
    data = {"shuffle": False, "val": {"text": kit.text(300)}}
    settings = streaming(corpus(tmp_path / "corpus.jsonl"), data | {"streaming": origin == "stream"})
    kit.train(settings, tmp_path / "origin")
    settings = streaming(corpus(tmp_path / "corpus.jsonl"), data)
    kit.train(settings, tmp_path / "run", resume=str(tmp_path / "origin" / "checkpoints" / "step-00000004"))
    assert kit.metrics(tmp_path / "run") == [line for line in kit.metrics(tmp_path / "origin") if line["step"] > 4]
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("run", "origin")]
    assert weights[0] == weights[1]


def test_a_new_run_cannot_go_back_in_the_stream(tmp_path, kit, streaming) -> None:
    """Smaller batches, or a larger share of a source, ask for rows that have gone by; nothing is left behind then."""
    settings = streaming(mixture(tmp_path))
    kit.train(settings, tmp_path / "origin")
    given = {"resume": str(tmp_path / "origin" / "checkpoints" / "step-00000004")}
    smaller = settings.training.model_copy(update={"batch_tokens": 16, "micro_batch": 1})
    heavier = streaming([source | {"weight": 9} if source["name"] != "web" else source for source in mixture(tmp_path)])
    other = streaming(corpus(tmp_path / "other.jsonl"))
    for changed in (settings.model_copy(update={"training": smaller}), heavier):
        with pytest.raises(RequestError, match=r"read \d+ rows where this run is at row \d+, and a stream cannot go"):
            kit.train(changed, tmp_path / "run", **given)
    with pytest.raises(RequestError, match=r"has read another text than data\.train streams here"):
        kit.train(other, tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_another_text_is_refused_on_resuming(tmp_path, kit, streaming, chaos, killed) -> None:
    train = corpus(tmp_path / "corpus.jsonl")
    settings = streaming(train)
    _, moments = kit.measure(chaos, settings, tmp_path)
    chaos.reset(len(moments) * 3 // 4)
    with pytest.raises(killed):
        kit.train(settings, tmp_path / "run")
    chaos.reset()
    corpus(Path(train), seed=9)
    with pytest.raises(RequestError, match=r"the text of data\.train or data\.val is not what the run"):
        kit.train(settings, tmp_path / "run")


def test_what_is_wrong_with_the_text_leaves_nothing_behind(tmp_path, kit, streaming) -> None:
    (tmp_path / "short.jsonl").write_text('{"text": "abc"}\n{"text": "def"}\n')
    wrong = {
        r"short\.jsonl has \d tokens to train on, too short for model\.context_length=16": {
            "train": str(tmp_path / "short.jsonl"),
            "val": {"text": kit.text(300)},
        },
        r"nowhere": {"train": str(tmp_path / "nowhere.jsonl")},
        r"data\.deduplicate=true needs the whole text": {"train": {"demo": "stories"}, "deduplicate": True},
        r"has 0 tokens to train on": {"train": {"demo": "stories", "documents": 3}, "val_documents": 3},
    }
    for sentence, data in wrong.items():
        with pytest.raises(RequestError, match=sentence):
            kit.train(streaming(data.pop("train"), data=data), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    with pytest.raises(RequestError, match=r"training\.epochs needs to know how long the text is"):
        settings = streaming({"demo": "stories"}, training={"epochs": 1, "batch_tokens": 64, "micro_batch": 2})
        kit.train(settings, tmp_path / "run")


def test_a_fault_that_training_comes_to(tmp_path, kit, streaming) -> None:
    """The run ends with the one sentence that it is, and what was trained until the last checkpoint is saved."""
    path = tmp_path / "corpus.jsonl"
    good = Path(corpus(path)).read_text().splitlines(keepends=True)
    path.write_text("".join([*good[:50], '{"words": "no text"}\n']))
    settings = streaming(str(path), training__max_steps=60)
    with pytest.raises(RequestError, match=r"corpus\.jsonl line 51 has no field 'text'"):
        kit.train(settings, tmp_path / "run")
    assert trainer_state(tmp_path / "run")["stream"]["sources"][0]["next_row"] > 4


def test_waiting_for_text_is_measured(tmp_path, kit, streaming) -> None:
    """Ten documents of 20 ms each are read before the first step, and thousands of steps are made of them."""
    (tmp_path / "slow.py").write_text(SLOW)
    data = {"shuffle": False, "val": {"text": kit.text(300)}}
    kit.train(streaming(f"{tmp_path / 'slow.py'}:Slow", data), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first, *others = [line["perf/data_wait_ms"] for line in lines if "perf/data_wait_ms" in line]
    assert first > 100 > max(others)


SLOW = """
import time
from minigpt.data import DataSource

class Slow(DataSource):
    def __init__(self, config):
        pass

    def documents(self):
        for number in range(10):
            time.sleep(0.02)
            yield "a b c d " * 4000
"""
