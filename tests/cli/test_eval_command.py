"""`minigpt eval` and `minigpt perplexity`, against the losses computed here from the model's own logits."""

import json
import math
from pathlib import Path

import pytest
import torch

from minigpt.inference import load

TEXT = "the quick fox\njumps over a dog €🙂\n" * 5
CONTEXT = 16


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "some.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def losses(folder: Path, text: str, stride: int = CONTEXT) -> list[float]:
    """-log p of every character but the first, window by window, in plain PyTorch."""
    loaded = load(folder)
    ids = torch.tensor(loaded.tokenizer.encode(text))
    found: list[float] = []
    for start in range(0, len(ids) - 1, stride):
        window = ids[start : start + CONTEXT + 1]
        log_p = loaded.model(window[None, :-1])[0].log_softmax(-1)
        nll = -log_p.gather(1, window[1:, None]).squeeze(1)
        found += nll[len(found) - start :].tolist()
    return found


@pytest.mark.parametrize("task", ["loss", "perplexity"])
def test_numbers(run, model_folder: Path, text_file: Path, task: str) -> None:
    expected = losses(model_folder, TEXT)
    mean, size = sum(expected) / len(expected), len(TEXT[1:].encode())
    found = run("eval", model_folder, "--task", task, "--data", text_file, "--json")
    assert found.err == ""
    assert found.json == {
        "task": task,
        "loss": pytest.approx(mean, rel=1e-5),
        "perplexity": pytest.approx(math.exp(mean), rel=1e-5),
        "bpb": pytest.approx(sum(expected) / math.log(2) / size, rel=1e-5),
        "tokens": len(TEXT) - 1,
        "bytes": size,
    }
    people = run("eval", model_folder, "--task", task, "--data", text_file)
    assert f"loss           {mean:.4f} nats per token\n" in people.out
    assert f"tokens         {len(TEXT) - 1} ({size} bytes)\n" in people.out


def test_per_token(run, model_folder: Path, text_file: Path) -> None:
    expected = losses(model_folder, TEXT)
    found = run("perplexity", model_folder, text_file, "--per-token", "--json").json
    assert "".join(token["text"] for token in found["per_token"]) == TEXT
    assert [token["loss"] for token in found["per_token"]] == [None, *(pytest.approx(x, rel=1e-4) for x in expected)]
    lines = run("perplexity", model_folder, text_file, "--per-token")
    rows = [line.split(maxsplit=1) for line in lines.out.splitlines()]
    assert [json.loads(text) for _, text in rows] == list(TEXT)
    assert rows[0][0] == "-" and [float(loss) for loss, _ in rows[1:]] == pytest.approx(expected, abs=1e-4)
    assert "perplexity" in lines.err
    same = run("eval", model_folder, "--task=perplexity", "--data", text_file, "--per-token", "--json").json
    assert same == found


def test_stride(run, model_folder: Path, text_file: Path) -> None:
    expected = losses(model_folder, TEXT, stride=4)
    found = run("perplexity", model_folder, text_file, "--stride=4", "--json").json
    assert found["loss"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_limit(run, model_folder: Path, text_file: Path) -> None:
    expected = losses(model_folder, TEXT)[: 3 * CONTEXT]
    found = run("perplexity", model_folder, text_file, "--limit=3", "--json").json
    assert (found["tokens"], found["loss"]) == (3 * CONTEXT, pytest.approx(sum(expected) / len(expected), rel=1e-5))
    assert run("eval", model_folder, "--data", text_file, "--limit=3", "--json").json["tokens"] == 3 * CONTEXT
    assert run("eval", model_folder, "--data", text_file, "--limit=10000", "--json").json["tokens"] == len(TEXT) - 1


def test_splits_of_the_run(run, run_folder: Path) -> None:
    """nanoGPT's cut: the first int(n * 0.9) characters train, the rest validate."""
    text = (run_folder.parent.parent / "text.txt").read_text(encoding="utf-8")
    cut = int(len(text) * 0.9)
    for split, part in (("train", text[:cut]), ("val", text[cut:])):
        found = run("eval", run_folder, "--split", split, "--json").json
        expected = losses(run_folder, part)
        assert (found["tokens"], found["loss"]) == (
            len(part) - 1,
            pytest.approx(sum(expected) / len(expected), rel=1e-5),
        )
    assert run("eval", run_folder).out == run("eval", run_folder, "--split=val").out


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], "--data"),
        (["--split=val"], "--split val"),
        (["--data=nowhere.txt"], "nowhere.txt"),
        (["--data={path: a, nonsense: b}"], "nonsense"),
        (["--data={path: a"], "source {path: a"),
        (["--task=perplexity", "--data", "FILE", "--stride=17"], "stride=17"),
        (["--data", "FILE", "--stride=4"], "--stride=4"),
        (["--data", "EMPTY"], "empty.txt"),
        (["--data", "BINARY"], "binary.txt"),
        (["--data", "FOREIGN"], "U+03A9"),
        (["--data", "SHORT"], "predict"),
        (["--task=perplexity", "--data", "SHORT"], "predict"),
    ],
)
def test_wrong_requests(run, model_folder: Path, text_file: Path, options: list[str], named: str) -> None:
    contents = {"empty": b"", "binary": b"\x89PNG\0\1\2", "foreign": "ab Ω".encode(), "short": b"a"}
    paths = {"FILE": text_file}
    for name, content in contents.items():
        paths[name.upper()] = text_file.parent / f"{name}.txt"
        paths[name.upper()].write_bytes(content)
    found = run("eval", model_folder, *(paths.get(option, option) for option in options))
    assert found.status == 2 and named in found.complaint


def test_a_model_without_a_tokenizer_says_so(run, model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    import shutil

    bare = shutil.copytree(model_folder, tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json", "MANIFEST.json"):
        (bare / name).unlink(missing_ok=True)
    for line in (["eval", bare, "--data", text_file], ["generate", bare, "--prompt=a"]):
        found = run(*line)
        assert found.status == 2 and "no tokenizer" in found.complaint
