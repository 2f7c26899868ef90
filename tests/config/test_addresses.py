"""Braces in addresses mean what they mean in a shell; what else a source may be survives the config."""

import shutil
import subprocess

import pytest

from minigpt.config import RequestError, load_config, resolved
from minigpt.config.addresses import expand_braces

PATTERNS = [
    "https://x.org/a.txt",
    "part-{000..013}.parquet",
    "{9..11}",
    "{7..7}.txt",
    "{a,b}_sample.jsonl",
    "{cc_2019-30,c4}/{1..2}-{x,y}",
    "x{a,,b}",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_as_bash_expands_them(pattern: str) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash to compare with")
    done = subprocess.run([bash, "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True)
    assert expand_braces(pattern) == done.stdout.splitlines()


def test_digits_are_kept() -> None:
    assert expand_braces("{008..011}") == ["008", "009", "010", "011"]
    assert len(expand_braces("f_{000001..000103}.bin")) == 103


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("a{b", "a brace without its partner"),
        ("a}b", "a brace without its partner"),
        ("{a,{b,c}}", "a brace without its partner"),
        ("{a}", "neither a range such as {000..013} nor a list"),
        ("{}", "neither a range"),
        ("{3..1}", "neither a range"),
        ("{1..x}", "neither a range"),
        ("{0..999999999999}", "neither a range"),
        ("{0..999}/{0..999}", "stands for 1,000,000 addresses; 100,000 is the most"),
    ],
)
def test_braces_that_mean_nothing(pattern: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        expand_braces(pattern)
    with pytest.raises(RequestError) as caught:
        load_config({}, [f"data.train=https://x.org/{pattern}"])
    assert said in str(caught.value) and str(caught.value).startswith("data.train.0: ")


def test_a_hash_or_a_size_is_that_of_one_file() -> None:
    for option in ("sha256: " + "a" * 64, "bytes: 3"):
        with pytest.raises(
            RequestError, match=r"is that of one file, but url='https://x\.org/\{1\.\.2\}' stands for 2"
        ):
            load_config({}, [f"data.train={{url: 'https://x.org/{{1..2}}', {option}}}"])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("https://x.org/{a,b}.txt", {"url": "https://x.org/{a,b}.txt"}),
        ('{path: a.txt, separator: "\\n\\n"}', {"path": "a.txt", "separator": "\n\n"}),
        ("{kind: /x/own.py:Own, count: 3}", {"kind": "/x/own.py:Own", "count": 3}),
        ("/x/own.py:Own", {"kind": "/x/own.py:Own"}),
        ("{kind: /x/own.py:Own, option: null}", {"kind": "/x/own.py:Own", "option": None}),
    ],
)
def test_sources_survive_the_resolved_config(text: str, wanted: dict) -> None:
    config, _ = load_config({}, [f"data.train={text}", f"data.val=[{text}]" if text[0] == "{" else f"data.val={text}"])
    tree = resolved(config)
    assert tree["data"]["train"] == tree["data"]["val"] == [wanted]
    assert load_config(tree)[0] == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{demo: stories, separator: x}", "separator='x' has no effect on a source given by demo"),
        ("{path: a, separator: ''}", "data.train.0.separator='' is not possible"),
        (f"{{path: a, sha256: {'a' * 64}}}", f"sha256='{'a' * 64}' has no effect on a source given by path"),
        ("{url: 'http://x/', sha256: abc}", "data.train.0.sha256=abc is not possible: expected match pattern"),
        ("{kind: novels}", "data.train.0.kind=novels is not possible: expected path/to/file.py:Class"),
        ("{pth: a}", "unknown key data.train.0.pth=a: the nearest one is data.train.0.path"),
        ("3", "data.train.0=3 is not possible"),
    ],
)
def test_a_wrong_source_is_named_with_its_place(text: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        load_config({}, [f"data.train={text}"])
    assert said in str(caught.value) and "class" not in str(caught.value).partition(" ")[0]


def test_another_training_text_takes_the_presets_validation_text_with_it(tmp_path) -> None:
    config, notes = load_config("tinystories", ["data.train=a.txt", "data.val_fraction=0.05"])
    assert config.data.val is None and config.data.val_fraction == 0.05
    assert len(notes) == 1 and notes[0].startswith("data.val=") and "is dropped because data.train is" in notes[0]
    config, notes = load_config("tinystories", ["data.train=a.txt", "data.val=b.txt"])
    assert [source.path for source in config.data.val] == ["b.txt"] and notes == []
    assert load_config("tinystories")[0].data.val is not None
    # What a file says together stays together.
    (tmp_path / "c.yaml").write_text("data: {train: a.txt, val: b.txt}")
    config, notes = load_config(tmp_path / "c.yaml", ["data.train=c.txt"])
    assert [source.path for source in config.data.val] == ["b.txt"] and notes == []
