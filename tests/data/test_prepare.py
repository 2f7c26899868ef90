"""From a config to tokens: the split, the documents, token files, and what is said when it cannot be done."""

import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from minigpt.config import DataConfig, RequestError
from minigpt.data import iter_training_text, prepare
from minigpt.data.preparing import unit
from minigpt.data.preparing.splits import SEPARATOR
from minigpt.tokenizer import CharTokenizer, Tokenizer, load_gpt2

TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 40


def config(**options) -> DataConfig:
    return DataConfig.model_validate(options)


def text_file(folder: Path, content: str = TEXT, name: str = "a.txt") -> str:
    (folder / name).write_bytes(content.encode())
    return str(folder / name)


def ids_of(dataset) -> list[int]:
    return dataset.tokens(0, len(dataset)).tolist()


def shard_files(cache: Path) -> list[Path]:
    return sorted((cache / "tokens").glob("*/*.tok"))


# --- the split


def test_nanogpts_split_of_tinyshakespeare(test_data, cache: Path) -> None:
    path = test_data("tinyshakespeare/input.txt")
    text = path.read_bytes().decode()
    data = config(train=str(path))
    tokenizer = CharTokenizer.from_texts(iter_training_text(data, cache, separator=None, include_val=True))
    assert tokenizer.vocab_size == 65
    prepared = prepare(data, tokenizer, cache=cache)
    assert (len(prepared.train), len(prepared.val)) == (1_003_854, 111_540)
    # nanoGPT's data/shakespeare_char/prepare.py, line for line in meaning
    stoi = {character: i for i, character in enumerate(sorted(set(text)))}
    n = len(text)
    assert ids_of(prepared.train) == [stoi[c] for c in text[: int(n * 0.9)]]
    assert ids_of(prepared.val) == [stoi[c] for c in text[int(n * 0.9) :]]
    assert prepared.train.tokens(0, 1).dtype == np.uint16


@pytest.mark.parametrize("fraction", [0.5, 0.25, 0.001])
def test_one_text_is_cut_at_the_character(fraction: float, char: CharTokenizer, cache: Path) -> None:
    prepared = prepare(config(train={"text": TEXT}, val_fraction=fraction), char, cache=cache)
    cut = int(len(TEXT) * (1 - fraction))
    assert char.decode(ids_of(prepared.train)) == TEXT[:cut]
    assert char.decode(ids_of(prepared.val)) == TEXT[cut:]
    assert prepared.train.n_documents == prepared.val.n_documents == 1


def rows(folder: Path, texts: list[str]) -> str:
    return text_file(folder, "".join(json.dumps({"text": text}) + "\n" for text in texts), "rows.jsonl")


def documents_of(dataset, tokenizer: Tokenizer) -> list[str]:
    starts = [*dataset.document_offsets.tolist(), len(dataset)]
    return [tokenizer.decode(dataset.tokens(a, b).tolist()) for a, b in itertools.pairwise(starts)]


def test_documents_stay_whole(tmp_path: Path, cache: Path, bpe: Tokenizer) -> None:
    texts = ["to be", "or not", "that is", "the question", "mind"]  # 5 + 6 + 7 + 12 + 4 = 34 characters
    end = "<|endoftext|>"
    # int(34 * 0.5) = 17 and int(34 * 0.4) = 13 lie in the third, which is trained on; with int(34 * 0.9) = 30 the
    # last one begins
    for fraction, trained in [(0.5, 3), (0.6, 3), (0.1, 4)]:
        prepared = prepare(config(train=rows(tmp_path, texts), val_fraction=fraction), bpe, cache=cache)
        assert documents_of(prepared.train, bpe) == [text + end for text in texts[:trained]]
        assert documents_of(prepared.val, bpe) == [text + end for text in texts[trained:]]
    # The boundary lies in the last: it is cut there, at character int(34 * 0.95) = 32.
    prepared = prepare(config(train=rows(tmp_path, texts), val_fraction=0.05), bpe, cache=cache)
    assert documents_of(prepared.train, bpe)[-1] == "mi" + end
    assert documents_of(prepared.val, bpe) == ["nd" + end]


def test_without_end_of_text_tokens(tmp_path: Path, cache: Path, bpe: Tokenizer) -> None:
    data = config(train=rows(tmp_path, ["to be", "or not"]), val_fraction=0, append_eot=False)
    prepared = prepare(data, bpe, cache=cache)
    assert prepared.val is None
    assert documents_of(prepared.train, bpe) == ["to be", "or not"]


def test_a_separator_in_a_file_is_the_end_of_text_token(tmp_path: Path, cache: Path, bpe: Tokenizer) -> None:
    content = f"to be\n{SEPARATOR}\nor not{SEPARATOR}that is"
    prepared = prepare(config(train=text_file(tmp_path, content), val_fraction=0), bpe, cache=cache)
    assert ids_of(prepared.train) == bpe.encode(content + SEPARATOR, allow_special=True)
    assert prepared.train.n_documents == 3
    # For a tokenizer without it, it is text like any other.
    plain = CharTokenizer.from_texts([content])
    prepared = prepare(config(train=text_file(tmp_path, content), val_fraction=0), plain, cache=cache)
    assert plain.decode(ids_of(prepared.train)) == content


def test_a_text_that_the_end_of_text_token_divides_is_no_single_one(cache: Path, bpe: Tokenizer) -> None:
    data = config(train={"text": "to be<|endoftext|>or not", "separator": "%%"}, val_fraction=0)
    with pytest.raises(RequestError, match="separator='%%' has no effect"):
        prepare(data, bpe, cache=cache)


def test_several_sources_follow_each_other(tmp_path: Path, cache: Path, bpe: Tokenizer) -> None:
    data = config(
        train=[text_file(tmp_path, "to be"), {"text": "or not"}, rows(tmp_path, ["that", "is"])], val_fraction=0
    )
    prepared = prepare(data, bpe, cache=cache)
    expected = [i for text in ("to be", "or not", "that", "is") for i in [*bpe.encode(text), bpe.eot_id]]
    assert ids_of(prepared.train) == expected


def test_a_single_text_gets_no_end(tmp_path: Path, cache: Path, bpe: Tokenizer) -> None:
    prepared = prepare(config(train=text_file(tmp_path), val={"text": "to be"}), bpe, cache=cache)
    assert ids_of(prepared.train) == bpe.encode(TEXT)
    assert ids_of(prepared.val) == bpe.encode("to be")


class CutAtWords:
    """A tokenizer that lets long documents be encoded in pieces."""

    cuttable = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.inner = tokenizer

    def __getattr__(self, name: str):
        return getattr(self.inner, name)


@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_pieces_and_shards_do_not_change_the_tokens(
    size: int, tmp_path: Path, cache: Path, char: CharTokenizer, bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["to be", "x" * 33, TEXT[:200], "or not to be é", "9"]
    monkeypatch.setattr(unit, "BATCH_CHARACTERS", size)
    data = config(train=rows(tmp_path, texts), val_fraction=0).model_copy(update={"shard_tokens": size})
    whole = CharTokenizer.from_texts([TEXT, *texts])
    for tokenizer in (whole, bpe, CutAtWords(bpe)):
        prepared = prepare(data, tokenizer, cache=cache)
        end = [] if tokenizer.eot_id is None else [tokenizer.eot_id]
        expected = [[*tokenizer.encode(text), *end] for text in texts]
        assert ids_of(prepared.train) == [i for ids in expected for i in ids]
        starts = np.cumsum([0, *map(len, expected[:-1])])
        assert prepared.train.document_offsets.tolist() == starts.tolist()


def test_a_novel_equals_encoding_it_whole(test_data, tmp_path: Path, cache: Path) -> None:
    gpt2 = load_gpt2(test_data("gpt2_bpe"))
    with gzip.open(test_data("classic_books/val.txt.gz"), "rt", encoding="utf-8", newline="") as file:
        text = file.read(300_000)
    prepared = prepare(config(train=text_file(tmp_path, text), val_fraction=0), gpt2, cache=cache)
    assert ids_of(prepared.train) == gpt2.encode(text)
    assert int(prepared.train.count_ids() @ gpt2.byte_lengths()) == len(text.encode())


# --- token files


def test_token_files_are_used_in_place(tmp_path: Path, cache: Path, bpe: Tokenizer) -> None:
    ids = np.array(bpe.encode(TEXT), "<u2")
    ids[:700].tofile(tmp_path / "train-0.bin")
    ids[700:].tofile(tmp_path / "train-1.bin")
    data = config(train=str(tmp_path / "train-*.bin"), val_fraction=0.25)
    prepared = prepare(data, bpe, cache=cache)
    cut = int(len(ids) * 0.75)
    assert ids_of(prepared.train) == ids[:cut].tolist()
    assert ids_of(prepared.val) == ids[cut:].tolist()
    assert shard_files(cache) == []
    ids[3] ^= 1
    ids[:700].tofile(tmp_path / "train-0.bin")
    assert prepare(data, bpe, cache=cache).fingerprint != prepared.fingerprint
    ids[3] = 60_000
    ids[:700].tofile(tmp_path / "train-0.bin")
    with pytest.raises(RequestError, match=r"train-0\.bin holds id 60000 at position 3"):
        prepare(data, bpe, cache=cache)


def test_token_files_with_separate_validation_text(tmp_path: Path, cache: Path, bpe: Tokenizer) -> None:
    np.save(tmp_path / "t.npy", np.array(bpe.encode(TEXT)))
    prepared = prepare(config(train=str(tmp_path / "t.npy"), val={"text": "to be"}), bpe, cache=cache)
    assert ids_of(prepared.train) == bpe.encode(TEXT)
    assert ids_of(prepared.val) == bpe.encode("to be")


# --- requests that cannot be met


def test_refused(tmp_path: Path, cache: Path, char: CharTokenizer, bpe: Tokenizer) -> None:
    np.zeros(1, "<u2").tofile(tmp_path / "one.bin")
    one = str(tmp_path / "one.bin")
    cases = [
        (config(), "data.train is not set"),
        (config(train=text_file(tmp_path, " \n ", "blank.txt")), "blank.txt holds no text"),
        (config(train={"text": ""}), "holds no text"),
        (config(train={"text": "to be"}, val_fraction=1e-20), r"val_fraction=1e-20 leaves no character for validation"),
        (config(train={"text": "to be"}, val_fraction=0.99), "leaves no character for training"),
        (config(train=one), "leaves an empty split of the 1 tokens"),
        (config(train=[one, {"text": "x"}]), "mixes text and token files"),
        (config(train=text_file(tmp_path, "to be\nor § not")), r"a.txt: character '§' \(U\+00A7\) at position 9"),
        (config(train={"text": "to be"}, val=str(tmp_path / "absent")), "there is no file or folder"),
    ]
    for data, sentence in cases:
        with pytest.raises(RequestError, match=sentence) as caught:
            prepare(data, char, cache=cache)
        assert "\n" not in str(caught.value)
    assert shard_files(cache) == []


def test_an_unknown_character_is_found_in_its_document(
    tmp_path: Path, cache: Path, char: CharTokenizer, monkeypatch
) -> None:
    monkeypatch.setattr(unit, "BATCH_CHARACTERS", 10)
    with pytest.raises(RequestError, match=r"rows.jsonl line 2: character '§'.*position 1 "):
        prepare(config(train=rows(tmp_path, ["to be", "o§r"])), char, cache=cache)
    with pytest.raises(RequestError, match=r"a.txt, counted from character 10: character '§'.*position 2 "):
        prepare(config(train=text_file(tmp_path, "to be or not§ to be"), val_fraction=0), char, cache=cache)


def test_too_short_for_the_context(cache: Path, char: CharTokenizer) -> None:
    prepared = prepare(config(train={"text": TEXT}, val={"text": "to be"}), char, cache=cache)
    prepared.require_context(4)
    with pytest.raises(RequestError, match=r"validation split .* has 5 tokens, too short for model.context_length=5"):
        prepared.require_context(5)


def test_demo_stories_as_a_source(cache: Path, bpe: Tokenizer) -> None:
    demo = pytest.importorskip("minigpt.data.demo")
    source = {"demo": "stories", "documents": 40, "seed": 3}
    prepared = prepare(config(train=source, val_fraction=0), bpe, cache=cache)
    assert documents_of(prepared.train, bpe) == [demo.story(3, index) + SEPARATOR for index in range(40)]


# --- progress, tokenizer text, description


def test_progress(tmp_path: Path, cache: Path, char: CharTokenizer, capfd: pytest.CaptureFixture) -> None:
    seen: list[tuple] = []
    prepare(config(train=text_file(tmp_path)), char, cache=cache, on_progress=lambda *args: seen.append(args))
    assert seen[-1] == ("tokenize", len(TEXT), len(TEXT))
    assert capfd.readouterr() == ("", "")


def test_progress_counts_the_bytes_of_all_files(tmp_path: Path, cache: Path, bpe: Tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(unit, "BATCH_CHARACTERS", 1)
    sizes = [40, 7, 100, 3]
    folders = [tmp_path / "one", tmp_path / "two"]
    for number, size in enumerate(sizes):
        folders[number // 2].mkdir(exist_ok=True)
        (folders[number // 2] / f"{number}.txt").write_text("x" * size)
    calls: list[tuple[str, int, int | None]] = []
    data = config(train=list(map(str, folders)), val_fraction=0, workers=1)
    prepare(data, bpe, cache=cache, on_progress=lambda *call: calls.append(call))
    seen = [(done, total) for stage, done, total in calls if stage == "tokenize"]
    assert {total for _, total in seen} == {sum(sizes)}
    assert seen == sorted(seen) and seen[-1][0] == sum(sizes)
    assert {done for done, _ in seen} <= {40, 47, 147, 150}, "the reader stands at the end of a file at each call"


def test_text_for_the_tokenizer_is_the_training_split(tmp_path: Path, cache: Path) -> None:
    cut = int(len(TEXT) * 0.9)
    data = config(train=text_file(tmp_path))
    assert "".join(iter_training_text(data, cache)) == TEXT[:cut]
    assert "".join(iter_training_text(data, cache, include_val=True)) == TEXT
    data = config(train=text_file(tmp_path), val={"text": "to be"})
    assert list(iter_training_text(data, cache)) == [TEXT]
    assert list(iter_training_text(data, cache, include_val=True)) == [TEXT, "to be"]
    path = text_file(tmp_path, f"a{SEPARATOR}b")
    assert list(iter_training_text(config(train=path, val_fraction=0), cache)) == ["a", "b"]
    assert list(iter_training_text(config(train=path, val_fraction=0), cache, separator=None)) == [f"a{SEPARATOR}b"]
    (tmp_path / "x.bin").write_bytes(b"ab")
    with pytest.raises(RequestError, match="cannot be trained on token ids"):
        list(iter_training_text(config(train=str(tmp_path / "x.bin")), cache))
