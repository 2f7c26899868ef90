"""A wrong config is one sentence that names the key, the value and what would do."""

import pytest

from minigpt.config import Config, RequestError, fields, load_config

BASE = {"model": {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 16}, "training": {"batch_tokens": 64}}


def refusal(source, overrides=()):
    with pytest.raises(RequestError) as caught:
        load_config(source, overrides)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400 and "pydantic" not in message.lower()
    return message


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("model.n_layers=2", "model.n_layer"),
        ("model.nlayer=2", "model.n_layer"),
        ("model.n_emb=2", "model.n_embd"),
        ("optimizer.beta=0.9", "optimizer.betas"),
        ("n_layer=2", "model.n_layer"),
        ("model.lr=0.1", "optimizer.lr"),
        ("training.keep_last=3", "checkpoint.keep_last"),
        ("seed=3", "run.seed"),
        ("trainig.max_steps=5", "training.max_steps"),
        ("training.max_step=5", "training.max_steps"),
        ("data.trian=x.txt", "data.train"),
        ("callbacks.sample.every=5", "callbacks.sample.every_steps"),
    ],
)
def test_an_unknown_key_names_the_nearest(override, nearest):
    message = refusal(BASE, [override])
    key, _, value = override.partition("=")
    assert message.startswith(f"unknown key {key}=") and value in message
    assert f"the nearest one is {nearest}" in message


def test_an_unknown_key_in_a_file_is_found_wherever_it_stands(tmp_path):
    for text, key in (
        ("model: {n_layerz: 3}", "model.n_layerz=3"),
        ("modl: {n_layer: 3}", "modl="),
        ("callbacks: {sample: {promt: x}}", "callbacks.sample.promt=x"),
        ("data: {train: {path: a.txt, feild: x}}", "data.train.0.feild=x"),
        ("data: {train: [a.txt, {pth: b.txt}]}", "data.train.1.pth=b.txt"),
    ):
        (tmp_path / "c.yaml").write_text(text)
        assert refusal(tmp_path / "c.yaml").startswith(f"unknown key {key}"), text


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.n_layer=two", "model.n_layer=two"),
        ("model.n_layer=2.0", "model.n_layer=2.0"),
        ("model.n_layer=true", "model.n_layer=true"),
        ("model.n_layer=null", "model.n_layer=null"),
        ("model.n_layer=[2]", "model.n_layer=[2]"),
        ("model.n_layer=0", "model.n_layer=0"),
        ("model.n_layer=-1", "model.n_layer=-1"),
        ("model.qk_norm=1", "model.qk_norm=1"),
        ("model.qk_norm=yes", "model.qk_norm=yes"),
        ("model.dropout=1.0", "model.dropout=1.0"),
        ("model.dropout=-0.1", "model.dropout=-0.1"),
        ("model.norm=batchnorm", "model.norm=batchnorm"),
        ("model.mlp=silu", "model.mlp=silu"),
        ("optimizer.lr=0", "optimizer.lr=0"),
        ("optimizer.lr=.inf", "optimizer.lr=.inf"),
        ("optimizer.lr=nan", "optimizer.lr=nan"),
        ("optimizer.betas=0.9", "optimizer.betas=0.9"),
        ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]"),
        ("optimizer.betas=[0.9,1.0]", "optimizer.betas=[0.9, 1.0]"),
        ("optimizer.name=sgd", "optimizer.name=sgd"),
        ("schedule.kind=cos", "schedule.kind=cos"),
        ("training.micro_batch=many", "training.micro_batch=many"),
        ("training.micro_batch=0", "training.micro_batch=0"),
        ("training.precision=fp8", "training.precision=fp8"),
        ("training.max_bad_steps=0", "training.max_bad_steps=0"),
        ("checkpoint.keep_last=1", "checkpoint.keep_last=1"),
        ("data.val_fraction=1.0", "data.val_fraction=1.0"),
        ("data.val_fraction=10%", "data.val_fraction=10%"),
        ("run.seed=-1", "run.seed=-1"),
        ("run.name=a/b", "run.name=a/b"),
        ("tokenizer.kind=wordpiece", "tokenizer.kind=wordpiece"),
        ("optimizer.groups=[{lr_scale: 2}]", "optimizer.groups.0.match is missing"),
        ("optimizer.groups=[{match: a, lr_scale: -1}]", "optimizer.groups.0.lr_scale=-1"),
        ("optimizer.groups=[{match: a, lr_scal: 1}]", "the nearest one is optimizer.groups.0.lr_scale"),
        ("optimizer.groups=[{match: a, betas: [0.9, 1.5]}]", "optimizer.groups.0.betas=[0.9, 1.5]"),
        ("schedule.accumulation=[0, 8]", "[[0, 8], [8750, 16]]"),
        ("training.batch_tokens=1099511627776", "training.batch_tokens makes a step of 1,099,511,627,776 tokens"),
        ("data.train={path: a, url: http://x/}", "path and url are set"),
        ("data.train={field: text}", "none of them is set"),
        ("data.train={text: abc, field: x}", "field='x' has no effect on a source given by text"),
        ("data.train={path: a, sha256: abc}", "sha256"),
        ("data.train=[]", "data.train=[]"),
        ("data.train=demo:novels", "novels"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(override, said):
    message = refusal(BASE, [override])
    assert said in message and override.partition("=")[0] in message


def test_the_sentence_says_what_would_do():
    assert "'rmsnorm' or 'layernorm'" in refusal(BASE, ["model.norm=batchnorm"])
    assert "greater than or equal to 1" in refusal(BASE, ["model.n_layer=0"])
    assert "valid integer" in refusal(BASE, ["model.n_layer=two"])
    assert "auto" in refusal(BASE, ["training.micro_batch=many"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.n_embd=33"], ["model.n_embd=33", "model.n_head=2"]),
        (["model.n_head=4", "model.n_kv_head=3"], ["model.n_kv_head=3", "model.n_head=4"]),
        (["model.head_dim=5"], ["model.head_dim=5", "odd rotary width of 5"]),
        (["model.n_head=32"], ["model.n_embd=32 / model.n_head=32", "odd rotary width of 1"]),
        (["model.window_pattern=sl"], ["model.window_pattern='sl'", "S (short window) and L"]),
        (["model.window_pattern="], ["model.window_pattern=''", "S (short window) and L"]),
        (["model.rope_scaling={kind: ntk, factor: 1e300}"], ["model.rope_scaling.factor=1e+300", "1,000,000"]),
        (["model.moe.n_expert=4", "model.moe.n_expert_used=1"], ["router", "set model.moe.normalize=false"]),
        (["model.moe.n_expert=4", "model.bias=true"], ["model.bias=true", "set model.mlp_bias=false"]),
        (["model.partial_rotary_factor=0.2"], ["model.partial_rotary_factor=0.2", "odd rotary width of 3"]),
        (["model.partial_rotary_factor=0.01"], ["nothing to rotate"]),
        (["training.batch_tokens=65"], ["training.batch_tokens=65", "model.context_length=16", "64 or 80"]),
        (["training.batch_tokens=8"], ["training.batch_tokens=8", "use 16"]),
        (["training.micro_batch=3"], ["training.micro_batch=3", "4 rows", "use 2"]),
        (["training.micro_batch=8"], ["training.micro_batch=8", "use 4"]),
        (["training.max_steps=5", "training.epochs=1"], ["training.max_steps=5", "training.epochs=1", "keep one"]),
        (["schedule.min_lr=1.0"], ["schedule.min_lr=1.0", "optimizer.lr"]),
        (["tokenizer.kind=file"], ["tokenizer.path", "tokenizer.kind=file"]),
    ],
)
def test_impossible_combinations(overrides, said):
    message = refusal(BASE, overrides)
    assert all(part in message for part in said), message


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["model.position=learned", "model.rope_theta=1e4"], "model.rope_theta"),
        (["model.position=learned", "model.partial_rotary_factor=0.5"], "model.partial_rotary_factor"),
        (["tokenizer.kind=char", "tokenizer.vocab_size=100"], "tokenizer.vocab_size"),
        (["tokenizer.kind=gpt2", "tokenizer.pattern=qwen2"], "tokenizer.pattern"),
        (["tokenizer.kind=bpe", "tokenizer.path=x"], "tokenizer.path"),
        (["tokenizer.kind=char", "data.append_eot=false"], "data.append_eot"),
        (["data.val=v.txt", "data.val_fraction=0.1"], "data.val_fraction"),
        (["schedule.kind=constant", "schedule.min_lr=1e-5"], "schedule.min_lr"),
        (["schedule.kind=linear", "schedule.decay_fraction=0.3"], "schedule.decay_fraction"),
        (["callbacks.sample.prompt=x"], "callbacks.sample.prompt"),
        (["callbacks.early_stopping.min_delta=0.1"], "callbacks.early_stopping.min_delta"),
        (["training.overfit_batches=1", "evaluation.max_tokens=100"], "evaluation.max_tokens"),
        (["model.attention_window=16"], "model.attention_window"),
        (["model.attention_window=4", "model.window_pattern=LLS"], "model.attention_window"),
        (["model.rope_local_theta=5", "model.attention_window=4", "model.rope_theta=77"], "model.rope_theta"),
        (["model.rope_scaling.kind=linear"], "model.rope_scaling.kind"),
        (["model.moe={n_expert: 2}", "model.moe.balance_weight=0.1"], "model.moe.balance_weight"),
        (["model.init_from=x", "model.init_std=0.1"], "model.init_std"),
        (["model.init_from=x", "tokenizer.vocab_size=300"], "tokenizer.vocab_size"),
        (["data.val_fraction=0", "evaluation.every_steps=10"], "evaluation.every_steps"),
        (["evaluation.every_steps=null", "callbacks.early_stopping.patience=3"], "callbacks.early_stopping.patience"),
        (["data.val_fraction=0", "callbacks.early_stopping.patience=3"], "callbacks.early_stopping.patience"),
    ],
)
def test_an_option_that_can_have_no_effect_is_refused(overrides, key):
    message = refusal(BASE, overrides)
    assert message.startswith(f"{key}=") and "can have no effect because" in message
    load_config(
        BASE, [o for o in overrides if not o.startswith((f"{key}=", "model.window_pattern="))]
    )  # the rest is fine


def test_an_option_that_the_file_sets_in_vain_is_refused_too(tmp_path):
    (tmp_path / "c.yaml").write_text("model: {position: learned, rope_theta: 5e5}")
    for overrides in ([], ["run.seed=3"]):
        assert refusal(tmp_path / "c.yaml", overrides).startswith("model.rope_theta=")


def test_an_inherited_value_that_an_override_makes_meaningless_is_dropped_with_a_line(tmp_path):
    (tmp_path / "c.yaml").write_text("model: {rope_theta: 5e5}\nschedule: {kind: wsd, decay_fraction: 0.3}")
    config, notes = load_config(tmp_path / "c.yaml", ["model.position=learned", "schedule.kind=cosine"])
    assert config.schedule.decay_fraction == Config().schedule.decay_fraction
    assert len(notes) == 2 and all("is dropped because" in note and "\n" not in note for note in notes)
    assert notes[0].startswith("model.rope_theta=") and notes[1].startswith("schedule.decay_fraction=0.3")


def test_another_length_replaces_the_presets():
    config, notes = load_config("shakespeare-char", ["training.epochs=2.0"])
    assert config.training.max_steps is None and config.training.epochs == 2.0
    assert notes == ["training.max_steps=2000 is dropped because training.epochs sets the length of the run"]


def test_a_null_asks_for_nothing():
    load_config(BASE, ["tokenizer.kind=char", "tokenizer.path=null", "callbacks.early_stopping.patience=null"])


@pytest.mark.parametrize("item", ["model.n_layer", "=3", "", "--help", "model=3", "model={n_layers: 3}"])
def test_an_override_that_is_none(item):
    refusal(BASE, [item])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no settings"),
        (b"- a\n- b\n", "holds no settings"),
        (b"just text", "holds no settings"),
        (b"model: {n_layer: 3", "not valid YAML"),
        (b"model:\n  n_layer: 3\n n_head: 2\n", "line 3 is not valid YAML"),
        (b"model:\n  n_layer: 3\n  n_layer: 4\n", "'n_layer' stands there twice"),
        (b"run: {seed: 1}\nrun: {seed: 2}\n", "'run' stands there twice"),
        (b"\xff\xfem\x00o\x00", "is not UTF-8 text"),
        (b"\x00\x01\x02\x80", "is not UTF-8 text"),
        (b"model: \x07", "not valid YAML"),
        (b"a: &x {b: *x}", ""),
        (b"a: !!python/object/apply:os.system ['true']", "not valid YAML"),
        (b'{"model": {"n_layer": 3,,}}', "not valid YAML"),
        (b"model: 3", "model=3"),
        (b"model: {n_layer: {a: 1}}", "model.n_layer"),
        (b"1: 2", "unknown key 1=2"),
        (b"preset: shakespear\n", "preset="),
    ],
)
def test_a_file_that_is_no_config(tmp_path, content, said):
    (tmp_path / "c.yaml").write_bytes(content)
    assert said in refusal(tmp_path / "c.yaml")


@pytest.mark.parametrize("source", ["'hub:'", "{path: a.jsonl, field: ''}", "{shards: ''}", "{hub: ''}"])
def test_an_empty_name_is_none(source):
    assert "is not possible" in refusal("shakespeare-char", [f"data.train={source}"])


def test_a_source_that_is_no_config(tmp_path):
    assert "did you mean shakespeare-char?" in refusal("shakespear-char")
    assert "is neither a file nor a preset" in refusal(tmp_path / "missing.yaml")
    assert "is a folder" in refusal(tmp_path)


def test_every_key_has_a_help_text_that_is_a_sentence():
    for key, (_, _, text) in fields().items():
        assert text.endswith(".") and len(text) > 10 and "\n" not in text, key
