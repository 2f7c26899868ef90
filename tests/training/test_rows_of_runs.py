"""Runs on packed, masked and mixed rows: they train, repeat to the bit from any checkpoint, and feel the mask."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from minigpt.config import DataConfig, RequestError
from minigpt.data import prepare
from minigpt.data.preparing.out import write_folders
from minigpt.tokenizer import CharTokenizer

DOCUMENTS = {"text": "".join(f"{w * n}<|endoftext|>" for n, w in enumerate(["bead ", "cab ", "hag ebb "] * 7, start=1))}
KINDS: list[dict[str, Any]] = [
    {"data__packing": "documents", "data__document_mask": True},
    {"data__document_mask": True, "data__restart_positions": False, "model__position": "learned"},
    {"data__packing": "documents", "data__stages": [{"from_fraction": 0.4, "weights": {"b": 1}}]},
]


def settings(kit: Any, **changes: Any) -> Any:
    mixture = [DOCUMENTS | {"weight": 2, "name": "a"}, {"text": "fed gag " * 90, "weight": 1, "name": "b"}]
    tokenizer = {"kind": "bpe", "vocab_size": 280}
    train = mixture if "data__stages" in changes else DOCUMENTS
    return kit.config(data__train=train, tokenizer=tokenizer, checkpoint__keep_last=9, **changes)


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", KINDS, ids=["packed", "masked", "staged"])
def test_a_run_goes_on_from_any_checkpoint_as_if_it_had_not_stopped(kind: dict[str, Any], kit, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert kit.train(settings(kit, **kind), whole).exit_status == 0
    for step in (2, 4):
        folder = tmp_path / str(step)
        kit.train(settings(kit, **kind), folder, resume=str(whole / "checkpoints" / f"step-{step:08}"))
        assert weights(folder) == weights(whole)
        logs = [[line for line in kit.metrics(run) if line["step"] > step] for run in (whole, folder)]
        assert logs[0] == logs[1] and len(logs[0]) >= 6 - step


def test_the_mask_and_the_positions_change_what_is_learned(kit, tmp_path: Path) -> None:
    found = set()
    for number, changes in enumerate([{}, KINDS[1] | {"data__restart_positions": True}, KINDS[1]]):
        given = {"model__position": "learned"} | changes
        kit.train(settings(kit, **given), tmp_path / str(number))
        found.add(weights(tmp_path / str(number)))
    assert len(found) == 3


def test_a_mixture_of_other_weights_is_another_run(kit, tmp_path: Path) -> None:
    """The weights are in data.train, whose text is compared, not its keys."""
    sources = [
        {"text": "bead cab " * 60, "weight": 2, "name": "a"},
        {"text": "fed gag " * 90, "weight": 1, "name": "b"},
    ]
    folder = tmp_path / "run"
    kit.train(kit.config(data__train=sources, training__max_steps=2), folder)
    changed = [sources[0], sources[1] | {"weight": 3}]
    with pytest.raises(RequestError, match=r"the mixture of data\.train was a: 2, b: 1 and is now a: 2, b: 3"):
        kit.train(kit.config(data__train=changed, training__max_steps=2), folder)


def test_weights_are_compared_to_the_last_digit(kit, tmp_path: Path) -> None:
    sources = [{"text": "bead cab " * 60, "weight": 0.12345671}, {"text": "fed gag " * 90, "weight": 1}]
    kit.train(kit.config(data__train=sources, training__max_steps=2), tmp_path / "run")
    changed = [sources[0] | {"weight": 0.12345672}, sources[1]]
    with pytest.raises(RequestError, match=r"was text: 0\.12345671, .* is now text: 0\.12345672, "):
        kit.train(kit.config(data__train=changed, training__max_steps=2), tmp_path / "run")


def test_the_same_text_in_other_shards_is_another_run(kit, tmp_path: Path) -> None:
    """Windows are shuffled shard by shard, so the shards say in which order they come."""
    text = "bead cab hag ebb " * 100
    tokenizer = CharTokenizer.from_texts([text])
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save(tmp_path / "tokenizer")
    prepared = prepare(DataConfig(train={"text": text}), tokenizer, cache=tmp_path / "cache")  # type: ignore[arg-type]
    for tokens in (300, 500):
        write_folders(prepared, tokenizer, tmp_path / str(tokens), shard_tokens=tokens)

    def config(tokens: int, **changes: Any) -> Any:
        file = {"kind": "file", "path": str(tmp_path / "tokenizer")}
        return kit.config(data__train={"shards": str(tmp_path / str(tokens))}, tokenizer=file, **changes)

    def cut_short(folder: Path, settings: Any) -> Path:
        kit.train(settings, folder)
        shutil.rmtree(folder / "model")
        return folder

    run = cut_short(tmp_path / "run", config(300))
    with pytest.raises(RequestError, match=r"the text of data\.train or data\.val is not what the run"):
        kit.train(config(500), run)
    run = cut_short(tmp_path / "other", config(300, data__shuffle_tokens=200))
    assert kit.train(config(500, data__shuffle_tokens=200), run).exit_status == 0  # the same order after all
