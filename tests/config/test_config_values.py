"""Layers, overrides, YAML and JSON, and the way to the resolved file and back."""

import json
import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from minigpt.config import Config, RequestError, config_yaml, fields, load_config, preset_names, resolved
from minigpt.config.yaml import dump_yaml, parse_yaml

BASE = {"model": {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 16}, "training": {"batch_tokens": 64}}


def get(config, key):
    for part in key.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optimizer.lr=1e-3", 0.001),
        ("optimizer.lr=2.5E-4", 0.00025),
        ("optimizer.lr=1", 1.0),
        ("optimizer.betas=[0.8, 0.9]", [0.8, 0.9]),
        ("optimizer.betas=[0.8,.9]", [0.8, 0.9]),
        ("training.grad_clip=null", None),
        ("training.grad_clip=~", None),
        ("training.compile=true", True),
        ("training.compile=False", False),
        ("training.micro_batch=auto", "auto"),
        ("training.micro_batch=2", 2),
        ("training.max_steps=1_000", 1000),
        ("run.seed=010", 10),
        ("run.name=007", "007"),
        ("run.name=true", "true"),
        ("run.name=null", None),
        ("run.device=cuda:1", "cuda:1"),
        ("--run.seed=3", 3),
        ("model.init_from=runs/a=b,c: d", "runs/a=b,c: d"),
        ("model.init_from=", ""),
        ("model.n_kv_head=null", None),
    ],
)
def test_overrides(override, value):
    config, _ = load_config(BASE, [override])
    found = get(config, override.removeprefix("--").partition("=")[0])
    assert found == value and type(found) is type(value)


def test_text_overrides_with_an_equals_sign_and_quotes():
    config, _ = load_config(BASE, ["callbacks.sample.every_steps=5", "callbacks.sample.prompt=a = 'b', \"c\": [d]"])
    assert config.callbacks.sample.prompt == "a = 'b', \"c\": [d]"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a.txt", [{"path": "a.txt"}]),
        ("dir/with=sign.txt", [{"path": "dir/with=sign.txt"}]),
        ("[a.txt, b.txt]", [{"path": "a.txt"}, {"path": "b.txt"}]),
        ("https://x.org/a?b=c", [{"url": "https://x.org/a?b=c"}]),
        ("demo:stories", [{"demo": "stories"}]),
        ("{path: a.jsonl, field: story}", [{"path": "a.jsonl", "field": "story"}]),
        ("[{text: abc}, demo:dialogues]", [{"text": "abc"}, {"demo": "dialogues"}]),
    ],
)
def test_sources(text, wanted):
    config, _ = load_config(BASE, [f"data.train={text}"])
    assert [source.model_dump(exclude_none=True) for source in config.data.train] == wanted


def test_later_layers_win(tmp_path):
    (tmp_path / "c.yaml").write_text("preset: shakespeare-char\nmodel: {n_layer: 3}\noptimizer: {lr: 2e-3}\n")
    config, notes = load_config(tmp_path / "c.yaml", ["model.n_layer=5", "model.n_layer=6"])
    assert (config.model.n_layer, config.model.n_head, config.optimizer.lr) == (6, 4, 0.002) and not notes
    assert config.run.name == "c"


def test_a_section_can_be_given_in_one_override():
    config, _ = load_config(BASE, ["callbacks.sample={every_steps: 3, prompt: x}", "callbacks.sample.prompt=y"])
    assert (config.callbacks.sample.every_steps, config.callbacks.sample.prompt) == (3, "y")


def test_a_source_of_an_override_replaces_that_of_the_file(tmp_path):
    (tmp_path / "c.yaml").write_text("data: {train: {path: a.jsonl, field: story}}")
    config, _ = load_config(tmp_path / "c.yaml", ["data.train=b.txt"])
    assert resolved(config)["data"]["train"] == [{"path": "b.txt"}]


def test_json_and_yaml_are_the_same(tmp_path):
    tree = {
        **BASE,
        "optimizer": {"lr": 1e-3, "betas": [0.9, 0.95]},
        "data": {"train": [{"text": "a: b\n\u00e9\U0001f600"}]},
    }
    (tmp_path / "a.json").write_text(json.dumps(tree, indent="\t"))  # escapes what is not ASCII, in pairs of surrogates
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True))
    one, other = load_config(tmp_path / "a.json")[0], load_config(tmp_path / "a.yaml")[0]
    assert one == other and one.data.train[0].text == "a: b\n\u00e9\U0001f600"


def test_names():
    assert load_config("shakespeare-char")[0].run.name == "shakespeare-char"
    assert load_config("shakespeare-char", ["run.name=x"])[0].run.name == "x"
    assert load_config(BASE)[0].run.name is None


@pytest.mark.parametrize("name", preset_names())
def test_the_resolved_config_of_a_preset_repeats_it(tmp_path, name):
    config, notes = load_config(name)
    assert notes == []
    (tmp_path / "config.yaml").write_text(config_yaml(config))
    again, notes = load_config(tmp_path / "config.yaml")
    assert again == config and notes == []
    assert config_yaml(again) == config_yaml(config)


@pytest.mark.parametrize(
    "overrides",
    [
        ["tokenizer.kind=char", "model.position=learned", "schedule.kind=constant", "data.val=v.txt"],
        ["tokenizer.kind=file", "tokenizer.path=a b", "schedule.kind=wsd", "schedule.decay_fraction=0.5"],
        ["training.overfit_batches=2", "data.train=[a, {text: 'x: |\n y'}]", "run.name=1e3", "optimizer.lr=1e-05"],
        ["data.val_fraction=0", "callbacks.sample={every_steps: 2, prompt: 'null'}", "model.init_from=~/x"],
        ["optimizer.eps=1e-300", "optimizer.lr=0.1", "model.rope_theta=1e22", "run.seed=9223372036854775807"],
    ],
)
def test_the_resolved_config_repeats_any_run(tmp_path, overrides):
    config, _ = load_config(BASE, [*overrides, "run.name=x"] if "run.name" not in str(overrides) else overrides)
    (tmp_path / "r.yaml").write_text(config_yaml(config))
    assert load_config(tmp_path / "r.yaml")[0] == config


@pytest.mark.parametrize("key", [key for key, (_, default, _) in fields().items() if isinstance(default, int | float)])
def test_every_number_can_be_set_to_its_default(key):
    default = fields()[key][1]
    needs = {"decay_fraction": ["schedule.kind=wsd"], "min_delta": ["callbacks.early_stopping.patience=1"],
             "max_new_tokens": ["callbacks.sample.every_steps=1"], "temperature": ["callbacks.sample.every_steps=1"],
             "vocab_size": ["tokenizer.kind=bpe"], "restart_positions": ["data.document_mask=true"],
             "shuffle_buffer": ["data.streaming=true"],
             "store_cache_gb": ["data.train=s3://bucket/tokens"],
             "factor": ["model.rope_scaling={kind: yarn, original_context: 64, attention_factor: 2.0}"],
             "low_freq_factor": ["model.rope_scaling={kind: llama3, factor: 2, original_context: 64}"],
             "high_freq_factor": ["model.rope_scaling={kind: llama3, factor: 2, original_context: 64}"],
             "balance_rate": ["model.moe={n_expert: 4, balance: bias}"],
             "shared_gate": ["model.moe={n_expert: 4, n_shared: 1}"],
             "beta2": ["optimizer={name: muon, muon: {normalise: true}}"],
             "reshard": ["distributed.mesh.fsdp=2"]}  # fmt: skip
    sections = {"rope_scaling": ["model.rope_scaling={kind: yarn, factor: 2, original_context: 64}"],
                "latent": ["model.attention=latent"], "moe": ["model.moe.n_expert=4"],
                "optimizer.muon": ["optimizer.name=muon"]}  # fmt: skip
    section, _, name = key.rpartition(".")
    chosen = [] if name in ("n_expert", "kind") else sections.get(section.removeprefix("model."), [])
    overrides = [*needs.get(name, chosen), f"{key}={dump_yaml([default]).strip()[1:-1]}"]
    assert get(load_config({}, overrides)[0], key) == default


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t")),
    st.sampled_from(["1e-3", "true", "Null", "~", "0x1F", "1_0", "010", "1:30", "on", "yes", "2001-01-01", "-", "#a",
                     "a: b", "{a}", "[b]", "'", '"', "", " ", "=", "!x", "&a", "*a", "%", "@", "`", "...", "---"]),
)  # fmt: skip
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True),
                                                                         inner, max_size=4), max_leaves=12
)  # fmt: skip


@given(trees)
def test_what_is_dumped_reads_back_as_it_was(value):
    def same(a, b):
        if isinstance(a, dict):
            return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
        if isinstance(a, list):
            return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
        return type(a) is type(b) and a == b and (a != 0 or math.copysign(1, a) == math.copysign(1, b))

    assert same(value, parse_yaml(dump_yaml(value), "test"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"model": {"n_layer": 3,,}}', "line 1 is not valid JSON"),
        ('{"run": {"seed": 1},\n "run": {"seed": 2}}', "'run' stands there twice"),
        ('{"a": {"b": 1, "b": 2}}', "'b' stands there twice"),
        ("[1]", "holds no settings"),
        ("", "line 1 is not valid JSON"),
    ],
)
def test_json_that_is_no_config(tmp_path, text, said):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(RequestError, match=said):
        load_config(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E5", 1e5), ("+1.5", 1.5), (".5", 0.5), ("1.", 1.0), ("12", 12), ("-3", -3), ("1_000", 1000),
        ("010", 10), ("yes", "yes"), ("on", "on"), ("NO", "NO"), ("1:30", "1:30"), ("2001-01-01", "2001-01-01"),
        ("0x10", "0x10"), ("true", True), ("TRUE", True), ("tRue", "tRue"), ("null", None), ("", None), ("'1'", "1"),
    ],
)  # fmt: skip
def test_scalars_are_what_people_mean(text, value):
    """The core schema of YAML 1.2 (section 10.3.2) with digits grouped by underscores."""
    found = parse_yaml(text, "test")
    assert found == value and type(found) is type(value)


def test_values_never_change_after_validation():
    with pytest.raises(Exception, match="frozen"):
        Config().model.n_layer = 3  # type: ignore[misc]
