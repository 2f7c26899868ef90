"""The model table and the arithmetic of a run, against the network itself."""

import pytest

torch = pytest.importorskip("torch")

from minigpt.config import ModelConfig, config_yaml, load_config  # noqa: E402
from minigpt.model import GPT  # noqa: E402
from minigpt.model.count import count_parameters, flops_per_token  # noqa: E402
from minigpt.reporting import parameters  # noqa: E402
from minigpt.reporting.runs import read_run  # noqa: E402
from minigpt.storage import save_checkpoint, save_model  # noqa: E402

SHAPES = {
    "default": ["model.qk_norm=true"],
    "gpt2": ["model.position=learned", "model.norm=layernorm", "model.mlp=gelu_tanh", "model.bias=true"],
    "untied": ["model.tie_embeddings=false", "model.n_kv_head=1"],
    "factorised": ["model.embedding_size=8", "model.tie_embeddings=false"],
    "experts": ["model.moe.n_expert=4", "model.moe.n_shared=1", "model.moe.balance=bias", "model.norm_place=sandwich"],
    "speed": ["model.speed.smear=true", "model.speed.residual_scalars=true", "model.speed.value_embeddings=alternate"],
    "windows": ["model.attention_window=4", "model.window_pattern=SL", "model.speed.backout=true"],
}


def settings(overrides):
    small = ["model.n_layer=3", "model.n_head=2", "model.n_embd=16", "model.context_length=8", "model.vocab_size=11"]
    return load_config({"data": {"train": "x"}, "training": {"max_steps": 9, "batch_tokens": 8}}, [*small, *overrides])[
        0
    ]


def saved(kit, config):
    run = kit.run(config=config_yaml(config))
    save_model(run / "model", config.model, GPT(config.model).state_dict(), None)
    return run


@pytest.mark.parametrize("name", SHAPES)
def test_parts_and_arithmetic_are_the_networks(kit, name):
    config = settings(SHAPES[name])
    run = read_run(saved(kit, config), "run", 100)
    parts = parameters.parts(run)
    assert run.finished and sum(part.parameters for part in parts) == count_parameters(config.model)
    assert parameters.flops_per_token(run, parts) == flops_per_token(config.model)
    assert parameters.flops_per_token(run, []) == flops_per_token(config.model)
    qkv = next(part for part in parts if part.name == "blocks.attention.qkv")
    heads = config.model.n_head + 2 * config.model.kv_heads
    assert qkv.copies == 3 and qkv.shape == (heads * 8, 16) and qkv.parameters == 3 * heads * 8 * 16
    order = [part.name for part in parts]
    assert order.index("embed") < order.index("blocks.attention_norm") < order.index("blocks.attention.qkv")
    last = next(name for name in order if name.startswith("blocks.mlp.") and name.endswith("down"))
    assert order.index("blocks.attention.out") < order.index(last) < order.index("norm")


def test_the_table_of_the_report(kit):
    page = kit.page(saved(kit, settings(SHAPES["default"])))
    rows = page.one("table", class_="parts").rows()
    assert rows[0] == ["Part", "Shape", "Parameters", "Share"]
    assert rows[1][:3] == ["embed", "11 × 16", "176"] and "× 3" in rows[2][0]
    total = count_parameters(settings(SHAPES["default"]).model)
    assert rows[-1] == ["in all", "", f"{total:,}", ""]
    shares = [float(row[3].removesuffix("%")) for row in rows[1:-1]]
    assert sum(shares) == pytest.approx(100, abs=0.1 * len(shares))
    assert "tied" in page.one(id="model").text and "Finished" in page.one(class_="status").text
    tokens = 100 * 200
    assert (
        f"{flops_per_token(settings(SHAPES['default']).model) * tokens / 1e9:.3g} GFLOP"
        in page.one(class_="figures").text
    )


def test_an_unfinished_run_shows_its_newest_checkpoint(kit):
    config = settings([])
    run = kit.run(config=config_yaml(config))
    for step, width in ((1, 16), (2, 32)):
        model = ModelConfig(**{**config.model.model_dump(), "n_embd": width})
        state = GPT(model).state_dict()
        save_checkpoint(run, step, model_config=model, model_state=state, optimizer_state={}, trainer_state={},
                        tokenizer=None)  # fmt: skip
    assert kit.page(run).one("table", class_="parts").rows()[1][1] == "11 × 32"


def test_a_part_of_the_users_own_is_counted_but_never_run(kit, tmp_path):
    (tmp_path / "mlp.py").write_text("raise RuntimeError('this code must not run')\n")
    config = settings([])
    run = saved(kit, config)
    text = (run / "config.yaml").read_text().replace("mlp: swiglu", f"mlp: {{kind: {tmp_path / 'mlp.py'}:Mine}}")
    (run / "config.yaml").write_text(text)
    page = kit.page(run)
    assert "mlp.py:Mine" in page.one(id="settings").text
    found = read_run(run, "run", 10)
    assert parameters.flops_per_token(found, parameters.parts(found)) == flops_per_token(config.model)
    assert parameters.flops_per_token(found, []) is None
