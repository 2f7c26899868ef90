"""Preparation that is stopped, split over processes or machines, or run on more threads gives the same bytes."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minigpt.config import DataConfig
from minigpt.data import Part, prepare, prepare_part
from minigpt.data.preparing import blocks, cached, unit
from minigpt.data.reading.download import DownloadError
from minigpt.tokenizer import Tokenizer

WORDS = ["to", "be", "or", "not", "that", "is", "the", "question", "nobler", "in", "mind", "suffer"]


class Stopped(BaseException):
    """Stands for a kill that comes between two Python instructions."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_CHARACTERS", 400)
    monkeypatch.setattr(unit, "BATCH_CHARACTERS", 90)


def texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randrange(1, 40))) for _ in range(count)]


def corpus(folder: Path, files: int = 5) -> dict:
    """A folder of JSONL and text files of very different sizes, one of them blank."""
    folder.mkdir()
    for number in range(files):
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts(3 + 11 * number, number))
        (folder / f"{number}.jsonl").write_text(rows, encoding="utf-8")
    (folder / "8.txt").write_text(" \n", encoding="utf-8")
    (folder / "9.txt").write_text("<|endoftext|>".join(texts(20, 9)), encoding="utf-8")
    return {"train": str(folder), "val_fraction": 0.2, "shard_tokens": 1024}


def finished(cache: Path) -> dict[str, bytes]:
    """Every file of every finished folder in a cache, by its path, which names the content too."""
    folders = [path for path in (cache / "tokens").iterdir() if path.is_dir()]
    assert not [path for path in folders if path.name.endswith(".work") or path.name.startswith(".")]
    return {f"{f.name}/{p.name}": p.read_bytes() for f in folders for p in f.iterdir()}


@pytest.fixture
def whole(tmp_path: Path, bpe: Tokenizer) -> tuple[DataConfig, dict[str, bytes]]:
    """A config, and what an undisturbed preparation makes of it."""
    data = DataConfig.model_validate(corpus(tmp_path / "corpus"))
    prepare(data, bpe, cache=tmp_path / "whole")
    return data, finished(tmp_path / "whole")


class StopAfter:
    """Progress that ends the work at its call number `left`."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        self.left -= 1
        if self.left < 0:
            raise Stopped


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, bpe: Tokenizer, whole, monkeypatch) -> None:
    data, expected = whole
    assert len([name for name in expected if name.endswith(".tok")]) > 2
    made: list[Path] = []
    finish = blocks.BlockWriter.finish
    monkeypatch.setattr(
        blocks.BlockWriter, "finish", lambda self, *a, **k: made.append(self.path) or finish(self, *a, **k)
    )
    draw = random.Random(1)
    for attempt in range(10):
        cache = tmp_path / f"cache-{attempt}"
        for _ in range(2):
            with contextlib.suppress(Stopped):
                prepare(data, bpe, cache=cache, on_progress=StopAfter(draw.randrange(60)))
        prepare(data, bpe, cache=cache)
        assert finished(cache) == expected
    assert len(made) == len(set(made)), "no finished block is made twice"


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_workers_does_not_matter(workers: int, tmp_path: Path, bpe: Tokenizer, whole) -> None:
    data, expected = whole
    prepare(data.model_copy(update={"workers": workers}), bpe, cache=tmp_path / "c")
    assert finished(tmp_path / "c") == expected


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("files", [1, 5])
def test_parts_merge_to_the_whole(count: int, files: int, tmp_path: Path, bpe: Tokenizer) -> None:
    data = DataConfig.model_validate(corpus(tmp_path / "corpus", files))
    prepare(data, bpe, cache=tmp_path / "whole")
    done = [
        prepare_part(data, bpe, Part(index, count), cache=tmp_path / f"machine-{index}", parts=tmp_path / f"{index}")
        for index in range(count)
    ]
    assert sum(map(bool, done)) == min(count, sum(done)) or files > 1
    for index in range(1, count):  # the folders of the machines are copied together
        shutil.copytree(tmp_path / f"{index}", tmp_path / "0", dirs_exist_ok=True)

    class Unused:
        def __getattr__(self, name: str):
            assert not name.startswith("encode"), "everything was encoded already"
            return getattr(bpe, name)

    prepare(data, Unused(), cache=tmp_path / "merged", parts=tmp_path / "0")  # type: ignore[arg-type]
    assert finished(tmp_path / "merged") == finished(tmp_path / "whole")


def test_what_parts_lack_is_made_and_what_is_damaged_is_made_again(
    tmp_path: Path, bpe: Tokenizer, whole, caplog
) -> None:
    data, expected = whole
    cache = tmp_path / "c"
    prepare_part(data, bpe, Part(1, 3), cache=cache)
    (work,) = (cache / "tokens").glob("*.work")
    made = sorted(work.iterdir())
    raw = made[0].read_bytes()
    made[0].write_bytes(raw[:3] + bytes([raw[3] ^ 1]) + raw[4:])  # an id
    made[1].write_bytes(made[1].read_bytes()[:-1])
    made[2].write_bytes(b"")
    prepare(data, bpe, cache=cache)
    assert finished(cache) == expected
    assert prepare_part(data, bpe, Part(0, 3), cache=cache) == 0, "there is nothing left to do"


def test_a_block_that_turns_out_to_be_damaged_is_made_again(tmp_path: Path, bpe: Tokenizer, whole, monkeypatch) -> None:
    """Found sound when the work began and damaged when it was to be merged: nothing may be published without it."""
    data, expected = whole
    find, calls = blocks.find_blocks, []

    def damaging(folder: Path, vocab_size: int):
        calls.append(folder)
        if len(calls) == 2:
            sorted(folder.glob("*.block"))[1].write_bytes(b"")
        return find(folder, vocab_size)

    monkeypatch.setattr(cached, "find_blocks", damaging)
    prepare(data, bpe, cache=tmp_path / "c")
    assert len(calls) == 4
    assert finished(tmp_path / "c") == expected


@pytest.mark.parametrize("table", [False, True])
def test_damage_in_the_last_document_is_noticed(table: bool, tmp_path: Path, bpe: Tokenizer) -> None:
    """It is cut in two, so its length is read before anything else of its block."""
    (tmp_path / "a.jsonl").write_text('{"text": "to be"}\n{"text": "that is the question, that is"}\n')
    data = DataConfig.model_validate({"train": str(tmp_path / "a.jsonl"), "val_fraction": 0.2})
    prepare(data, bpe, cache=tmp_path / "whole")
    prepare_part(data, bpe, Part(0, 1), cache=tmp_path / "c")
    (block,) = (tmp_path / "c" / "tokens").glob("*.work/*.block")
    raw = bytearray(block.read_bytes())
    tokens = blocks.Block(block, bpe.vocab_size).facts.tokens
    raw[2 * tokens + 24 if table else 0] ^= 1  # the characters of the last document, or an id
    block.write_bytes(raw)
    prepare(data, bpe, cache=tmp_path / "c")
    assert finished(tmp_path / "c") == finished(tmp_path / "whole")


def test_a_part_that_nobody_waited_for_is_no_failure(tmp_path: Path, bpe: Tokenizer, whole) -> None:
    """Another process makes all of it meanwhile, and takes the work folder away."""
    data, expected = whole
    cache = tmp_path / "c"

    def finish(stage: str, done: int, total: int | None) -> None:
        if stage == "tokens" and not (cache / "done").exists():
            (cache / "done").touch()
            prepare(data, bpe, cache=cache)

    assert prepare_part(data, bpe, Part(0, 2), cache=cache, on_progress=finish) == 0
    assert finished(cache) == expected


def test_a_network_that_fails_at_the_end_costs_no_work(tmp_path: Path, bpe: Tokenizer, whole, monkeypatch) -> None:
    """Whether the text is still the same is asked once more at the end; for a data set of the hub over the network."""
    data, expected = whole
    ask, asked = cached.CachedUnit._make_key, []

    def fail_the_second_time(unit):
        asked.append(unit)
        if len(asked) == 2:
            raise DownloadError("no network")
        return ask(unit)

    with monkeypatch.context() as patch:
        patch.setattr(cached.CachedUnit, "_make_key", fail_the_second_time)
        with pytest.raises(DownloadError):
            prepare(data, bpe, cache=tmp_path / "c")
    assert prepare_part(data, bpe, Part(0, 1), cache=tmp_path / "c") == 0, "all blocks are there"
    prepare(data, bpe, cache=tmp_path / "c")
    assert finished(tmp_path / "c") == expected


def test_an_old_work_folder_that_is_gone_on_with_is_not_abandoned(
    tmp_path: Path, bpe: Tokenizer, whole, monkeypatch
) -> None:
    """Another preparation in the same cache removes abandoned ones, but not this one, before its first block."""
    data, expected = whole
    prepare_part(data, bpe, Part(0, 2), cache=tmp_path / "c")
    (work,) = (tmp_path / "c" / "tokens").glob("*.work")
    blocks_there = sorted(work.glob("*.block"))
    os.utime(work, (0, 0))
    make = cached.make_blocks

    def make_after_another(*arguments):
        monkeypatch.setattr(cached, "make_blocks", make)
        prepare(DataConfig.model_validate({"train": {"text": "to be"}, "val_fraction": 0}), bpe, cache=tmp_path / "c")
        assert sorted(work.glob("*.block")) == blocks_there
        return make(*arguments)

    monkeypatch.setattr(cached, "make_blocks", make_after_another)
    prepare(data, bpe, cache=tmp_path / "c")
    assert expected.items() <= finished(tmp_path / "c").items()


def test_every_source_of_a_mixture_has_its_parts(tmp_path: Path, bpe: Tokenizer) -> None:
    one, other = corpus(tmp_path / "a"), corpus(tmp_path / "b", 3)
    data = DataConfig.model_validate(
        {
            "train": [{"path": one["train"], "weight": 3}, {"path": other["train"], "weight": 1}],
            "val": {"text": "to be"},
        }
    )
    prepare(data, bpe, cache=tmp_path / "whole")
    for index in range(3):
        prepare_part(data, bpe, Part(index, 3), cache=tmp_path / "c")
    prepare(data, bpe, cache=tmp_path / "c")
    assert finished(tmp_path / "c") == finished(tmp_path / "whole")
    assert len({name.split("/")[0] for name in finished(tmp_path / "c")}) == 3


PROGRAM = """
import sys
from pathlib import Path
from minigpt.config import DataConfig
from minigpt.data import prepare
from minigpt.data.preparing import blocks
from minigpt.tokenizer import load_gpt2

blocks.BLOCK_CHARACTERS = 50_000
data = DataConfig.model_validate({"train": sys.argv[1], "shard_tokens": 100_000, "workers": 2})
tokenizer = load_gpt2(Path(sys.argv[2]))
print("ready", flush=True)
prepare(data, tokenizer, cache=Path(sys.argv[3]))
"""


@pytest.mark.slow
def test_twenty_kills(test_data, tmp_path: Path) -> None:
    """SIGKILL at random instants of the work, each time going on from what is there."""
    arguments = [str(test_data("classic_books/val.txt.gz")), str(test_data("gpt2_bpe"))]

    def start(cache: Path) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments, str(cache)], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        return process

    process = start(tmp_path / "whole")
    began = time.monotonic()
    assert process.wait() == 0
    seconds = time.monotonic() - began
    expected, draw, kills, number = finished(tmp_path / "whole"), random.Random(0), 0, 0
    while kills < 20:
        cache = tmp_path / f"cache-{number}"
        process = start(cache)
        time.sleep(draw.uniform(0, 0.5) * seconds)
        process.send_signal(signal.SIGKILL)
        was_killed = process.wait() != 0
        kills += was_killed
        if not was_killed or kills in (3, 7, 12, 20):  # it is seen to the end now and then
            assert start(cache).wait() == 0
            assert finished(cache) == expected
            number += 1
