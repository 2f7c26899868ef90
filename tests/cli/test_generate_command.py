"""`minigpt generate`: text, JSON, streaming, and the options taken from the config."""

from pathlib import Path

import pytest

from minigpt.config import GenerationConfig
from minigpt.inference import load


def test_text_is_the_models(run, model_folder: Path) -> None:
    expected = load(model_folder).generate("the ", max_new_tokens=40, seed=3)
    found = run("generate", model_folder, "--prompt", "the ", "--max-new-tokens", 40, "--seed", 3)
    assert (found.status, found.err) == (0, "")
    assert found.out == expected.text + ("" if expected.text.endswith("\n") else "\n")


def test_json_is_one_object_with_the_contracts_keys(run, model_folder: Path) -> None:
    expected = load(model_folder).generate("the ", max_new_tokens=40, seed=3)
    found = run("generate", model_folder, "--prompt", "the ", "--max-new-tokens=40", "--seed=3", "--json")
    assert found.json == {"text": expected.text, "ids": expected.ids, "finish_reason": "length"}
    assert len(expected.ids) == 40 and found.err == ""


def test_several_samples(run, model_folder: Path) -> None:
    line = ("generate", model_folder, "--prompt=a", "--max-new-tokens=8", "--seed=1", "--num-samples=3")
    samples = run(*line, "--json").json
    assert [sorted(sample) for sample in samples] == [["finish_reason", "ids", "text"]] * 3
    assert len({sample["text"] for sample in samples}) == 3
    people = run(*line).out
    assert people == "".join(f"--- sample {i} of 3 ---\n{s['text']}\n" for i, s in enumerate(samples, start=1))


def test_prompt_from_a_file_and_from_stdin_is_taken_to_the_letter(run, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt").write_bytes(b"a fox\n")
    options = ("--max-new-tokens=12", "--seed=5", "--json")
    by_argument = run("generate", model_folder, "--prompt", "a fox\n", *options).json
    assert run("generate", model_folder, "--prompt-file", tmp_path / "prompt", *options).json == by_argument
    assert run("generate", model_folder, "--prompt-file=-", *options, stdin=b"a fox\n").json == by_argument
    assert run("generate", model_folder, "--prompt", "a fox", *options).json != by_argument


def test_every_field_of_the_config_is_an_option_with_its_default(run) -> None:
    text = " ".join(run("generate", "--help").out.split())
    for name, field in GenerationConfig.model_fields.items():
        _, found, rest = text.partition(f"--{name.replace('_', '-')} ")
        assert found, name
        assert field.description.rstrip(".") in rest
        default = field.get_default(call_default_factory=True)
        if default not in (None, []):
            assert f"[default: {default}]" in rest.split(" --")[0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--temperature=0"], {"temperature": 0}),
        (["--top-k=3", "--seed=1"], {"top_k": 3, "seed": 1}),
        (["--top-p=0.5", "--seed=1"], {"top_p": 0.5, "seed": 1}),
        (["--min-p=0.9", "--seed=1"], {"min_p": 0.9, "seed": 1}),
        (["--repetition-penalty=5", "--temperature=0"], {"repetition_penalty": 5, "temperature": 0}),
        (["--stop=e", "--stop=a", "--seed=1"], {"stop": ["e", "a"], "seed": 1}),
    ],
)
def test_options_reach_the_sampler(run, model_folder: Path, options: list[str], expected: dict) -> None:
    wanted = load(model_folder).generate("x", max_new_tokens=30, **expected)
    found = run("generate", model_folder, "--prompt=x", "--max-new-tokens=30", *options, "--json").json
    assert found == {"text": wanted.text, "ids": wanted.ids, "finish_reason": wanted.finish_reason}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--temperature=-1"], "--temperature=-1.0"),
        (["--temperature=nan"], "--temperature=nan"),
        (["--top-k=0"], "--top-k=0"),
        (["--top-p=1.5"], "--top-p=1.5"),
        (["--max-new-tokens=0"], "--max-new-tokens=0"),
        (["--max-new-tokens=many"], "--max-new-tokens=many is not possible: it should be a valid integer;"),
        (["--num-samples=0"], "--num-samples=0"),
        (["--stop="], "stop"),
        (["--threads=0"], "threads"),
        (["--device=tpu9"], "tpu9"),
        (["--tempreature=1"], "--temperature"),
        (["--prompt=a", "--prompt-file=b"], "--prompt and --prompt-file"),
        (["--prompt-file=/nowhere/x"], "/nowhere/x"),
        (["--prompt=Ω"], "U+03A9"),
        (["more"], "more"),
    ],
)
def test_wrong_requests(run, model_folder: Path, options: list[str], named: str) -> None:
    found = run("generate", model_folder, *options)
    assert found.status == 2
    assert named in found.complaint


def test_prompt_that_is_not_utf8(run, model_folder: Path) -> None:
    found = run("generate", model_folder, "--prompt-file=-", stdin=b"ab\xff")
    assert found.status == 2 and "stdin is not UTF-8 text: byte 2 (0xff)" in found.complaint


@pytest.mark.parametrize("make", ["missing", "empty folder", "file", "hugging face"])
def test_what_is_no_model(run, tmp_path: Path, make: str) -> None:
    path = tmp_path / "model"
    if make == "file":
        path.write_text("x")
    elif make != "missing":
        path.mkdir()
    if make == "hugging face":
        (path / "config.json").write_text('{"model_type": "llama"}')
    found = run("generate", path, "--prompt=a")
    assert found.status == 2 and str(path) in found.complaint


def test_damaged_weights_are_work_that_failed(run, model_folder: Path, tmp_path: Path) -> None:
    import shutil

    path = tmp_path / "model"
    shutil.copytree(model_folder, path)
    weights = bytearray((path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (path / "model.safetensors").write_bytes(weights)
    found = run("generate", path, "--prompt=a")
    assert found.status == 1 and "model.safetensors" in found.complaint
