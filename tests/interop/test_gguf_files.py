"""GGUF files: every key and tensor as the package `gguf` reads them, and what cannot be said is refused."""

import json

import pytest
import torch
from gguf_models import CASES, TEXT, known_keys, random_model, tokenizer

gguf = pytest.importorskip("gguf")

import tokenizers  # noqa: E402

from minigpt.config import ModelConfig, RequestError, WorkError  # noqa: E402
from minigpt.interop.exporting import ExportSource, export_model  # noqa: E402
from minigpt.interop.gguf import read_gguf, writing  # noqa: E402
from minigpt.interop.gguf.architectures import find, represent  # noqa: E402
from minigpt.interop.gguf.modelfile import is_chatml  # noqa: E402
from minigpt.interop.gguf.reading import GGUFSource  # noqa: E402
from minigpt.interop.gguf.tokens import vocabulary  # noqa: E402
from minigpt.interop.huggingface.family import Family  # noqa: E402
from minigpt.interop.meaning import differences  # noqa: E402
from minigpt.tokenizer import CharTokenizer, HuggingFaceTokenizer, train_bpe, train_sentencepiece  # noqa: E402
from minigpt.tokenizer.patterns import CL100K, REGEXES, split_by  # noqa: E402

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def source(model, tok=None, path="runs/my-model"):
    from pathlib import Path

    return ExportSource(Path(path), model.config, tok, lambda: model)


def fields(path):
    """Every key of a file, by the package."""
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}, {t.name: t for t in reader.tensors}


def exported(tmp_path, keys, dtype="f32", tok=None, **sizes):
    model = random_model(keys, **sizes)
    lines = []
    path = export_model(source(model, tok or tokenizer()), tmp_path / "out", "gguf", dtype, lines.append)
    return model, path, lines


FIRST = {architecture: name for name, (architecture, _) in reversed(CASES.items())}.values()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FIRST else [pytest.mark.slow]) for name in CASES]
)
def test_every_architecture_comes_back(tmp_path, name):
    architecture, keys = CASES[name]
    model, path, _ = exported(tmp_path, keys)
    values, tensors = fields(path)
    assert values["general.architecture"] == architecture
    known = gguf.MODEL_TENSORS[{name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]]
    allowed = {gguf.TENSOR_NAMES[kind].replace("{bid}", "0") for kind in known}
    for tensor in tensors:
        assert tensor.replace("blk.1.", "blk.0.").replace("blk.2.", "blk.0.").rsplit(".", 1)[0] in allowed
    found = represent(model.config)
    written = GGUFSource(path)
    assert {key for key in values if not key.startswith("GGUF.")} == written.keys.keys()
    for key, value in written.keys.items():
        assert values[key] == (pytest.approx(value, rel=1e-7) if isinstance(value, float) else value), key
    said = found.architecture.write(found.config)
    for key in {key for key in said if "minigpt." not in key} - {"rope_freqs"}:
        exact = isinstance(said[key], str | bool)
        assert values[f"{architecture}.{key}"] == (said[key] if exact else pytest.approx(said[key], rel=1e-6)), key
        assert f"{{arch}}.{key}" in known_keys(), "llama.cpp's own name of it"
    for name, tensor in tensors.items():
        if name != "rope_freqs.weight":
            assert torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).equal(written.get(name))
    for ours, theirs in differences(found.config, written.config).values():
        assert theirs == pytest.approx(ours, rel=1e-6)  # numbers of 32 bits, some made from others
    # bit-equal in the file, whatever was rewritten before
    again = dict(written.tensors())
    ids = torch.randint(300, (2, 100), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(read_gguf(path)(ids), model(ids), atol=2e-5, rtol=1e-4)
    unchanged = {key for key, value in model.state_dict().items() if key in again and value.equal(again[key])}
    if not differences(model.config, found.config) and model.config.vocab_multiple == 1:
        assert unchanged == set(again)


def test_the_keys_of_a_qwen3(tmp_path):
    keys = {"n_kv_head": 2, "head_dim": 24, "rope_theta": 5e5, "norm_eps": 1e-5, "n_inner": 96}
    model, path, _ = exported(tmp_path, keys)
    values, tensors = fields(path)
    expected = {
        "general.architecture": "qwen3",
        "general.name": "my-model",
        "general.file_type": int(gguf.LlamaFileType.ALL_F32),
        "qwen3.context_length": 128,
        "qwen3.embedding_length": 64,
        "qwen3.block_count": 3,
        "qwen3.feed_forward_length": 96,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 24,
        "qwen3.attention.value_length": 24,
        "qwen3.rope.dimension_count": 24,
        "qwen3.rope.freq_base": 5e5,
        "qwen3.vocab_size": 300,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.eos_token_id": 299,
        "tokenizer.ggml.bos_token_id": 299,
        "tokenizer.ggml.eot_token_id": 299,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
    }
    assert {key: values[key] for key in expected} == expected
    assert values["qwen3.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    lists = {"tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"}
    rest = values.keys() - expected.keys() - lists - {"qwen3.attention.layer_norm_rms_epsilon"}
    assert rest == {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"}
    description = json.loads(tokenizer()._json)
    assert values["tokenizer.ggml.merges"] == [" ".join(pair) for pair in description["model"]["merges"]]
    names = {**description["model"]["vocab"], "<|endoftext|>": 299}
    assert values["tokenizer.ggml.tokens"] == sorted(names, key=names.__getitem__)
    assert values["tokenizer.ggml.token_type"] == [int(gguf.TokenType.NORMAL)] * 299 + [int(gguf.TokenType.CONTROL)]
    q, k, v = model.state_dict()["blocks.1.attention.qkv.weight"].split([96, 48, 48])
    for tensor, name in ((q, "q"), (k, "k"), (v, "v")):
        assert torch.from_numpy(tensors[f"blk.1.attn_{name}.weight"].data.copy()).equal(tensor)
    assert "output.weight" not in tensors


def test_a_file_is_called_as_its_run(tmp_path):
    for name, expected in (
        ("words", "words"),
        ("words/model", "words"),
        ("words/checkpoints/step-00000007", "words"),
    ):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        assert source(random_model({"n_layer": 1}), path=tmp_path / name).name == expected


def test_names_are_those_of_the_converter_for_hugging_face_folders(tmp_path):
    """llama.cpp's own map of names, fed with the Hugging Face tensors of the same model."""
    families = pytest.importorskip("minigpt.interop.huggingface.families").FAMILIES
    for name in ("gpt2", "qwen3", "qwen2", "llama", "olmo2", "mixtral", "qwen3moe", "gemma3"):
        architecture, keys = CASES[name]
        model, path, _ = exported(tmp_path / name, {**keys, "tie_embeddings": False, "n_layer": 1})
        family: Family = families[
            "mixtral" if name == "mixtral" else "gemma3_text" if name == "gemma3" else name.replace("moe", "_moe")
        ]
        arch = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
        names = gguf.get_tensor_name_map(arch, 1)
        theirs = {part for rule in family.rules(represent(model.config).config) for part in rule.theirs}
        mapped = {names.get_name(part, try_suffixes=(".weight", ".bias")) for part in theirs if ".experts." not in part}
        assert None not in mapped
        assert mapped == {part for part in fields(path)[1] if "_exps" not in part}


@pytest.mark.parametrize(("dtype", "kind", "outer"), [
    ("f16", "F16", "F16"), ("bf16", "BF16", "BF16"), ("q8_0", "Q8_0", "Q8_0"), ("q4_0", "Q4_0", "Q8_0"),
])  # fmt: skip
def test_types_of_numbers(tmp_path, dtype, kind, outer):
    model, path, lines = exported(tmp_path, {"moe": {"n_expert": 2, "n_expert_used": 1, "n_inner": 32}}, dtype)
    values, tensors = fields(path)
    assert tensors["token_embd.weight"].tensor_type.name == outer
    for name in ("attn_q", "ffn_down_exps"):
        assert tensors[f"blk.0.{name}.weight"].tensor_type.name == kind
    for name in ("attn_norm", "attn_q_norm", "ffn_gate_inp"):
        assert tensors[f"blk.0.{name}.weight"].tensor_type.name == "F32"
    assert values["general.file_type"] == gguf.LlamaFileType[f"MOSTLY_{kind}"]
    assert ("general.quantization_version" in values) == kind.startswith("Q")
    assert len(lines) == 2 and "likeliest token" in lines[0] and lines[1].startswith("verified: read back")
    exact = model.state_dict()["blocks.2.attention.out.weight"]
    difference = (GGUFSource(path).get("blk.2.attn_output.weight") - exact).abs()
    blocks = exact.reshape(-1, 32).abs().amax(1).repeat_interleave(32).reshape(exact.shape)
    allowed = {
        "F16": exact.abs() * 2**-11,
        "BF16": exact.abs() * 2**-8,
        "Q8_0": blocks * (1 / 254 + 2**-11),
        "Q4_0": blocks / 8,
    }
    assert (difference <= allowed[kind] * 1.01 + 2**-24).all() and difference.any()


def test_numbers_that_do_not_fit(tmp_path):
    with pytest.raises(RequestError, match=r"q4_0 needs rows of a multiple of 32 numbers, and .* has 48"):
        exported(tmp_path, {"n_inner": 48}, "q4_0")
    model = random_model({})
    model.embed.weight[5, 5] = 70000.0
    with pytest.raises(RequestError, match=r"token_embd.weight has numbers that are too large for f16"):
        export_model(source(model, tokenizer()), tmp_path / "out", "gguf", "f16")
    assert not (tmp_path / "out").exists()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("keys", "message"), [
    ({"logit_softcap": 15.0}, "the nearest, qwen3, has no model.logit_softcap=15"),
    ({"partial_rotary_factor": 0.5}, "qwen3, has model.partial_rotary_factor=1.* instead of"),
    ({"attention_window": 20}, r"no model.attention_window=\[20,20,20\]"),
    ({**CASES["gpt2"][1], "mlp": "gelu"}, "gpt2, has model.mlp=gelu_tanh instead of gelu"),
    ({"mlp": "geglu"}, "qwen3, has model.mlp=swiglu instead of geglu"),
    ({"embedding_size": 32}, "factorised embeddings"),
    ({"speed": {"smear": True}}, "no model.speed.smear=true"),
    ({"embedding_norm": True}, "no model.embedding_norm=true"),
    ({"rope_scaling": {"kind": "llama3", "factor": 8.0, "original_context": 32}}, "llama, has model.qk_norm=none"),
    ({"rope_scaling": {"kind": "yarn", "factor": 8.0, "original_context": 32, "beta_fast": 16.0}}, "rope_scaling"),
    ({"moe": {"n_expert": 4, "balance": "bias"}, "qk_norm": "none"}, "no model.moe.balance|model.moe.balance=none"),
    ({"moe": {"n_expert": 4, "period": 2, "n_shared": 1}}, "first_dense and model.moe.period"),
    ({"norm": "layernorm"}, "model.qk_norm=none instead of head|model.norm=rmsnorm instead of layernorm"),
    ({"parallel_residual": True}, "no model.parallel_residual=true"),
])  # fmt: skip
def test_models_that_no_architecture_represents(keys, message):
    sizes = {"n_layer": 3, "n_head": 4, "n_embd": 64, "context_length": 128, "vocab_size": 300}
    with pytest.raises(RequestError, match=message):
        represent(ModelConfig.model_validate({**sizes, **keys}))


def special_tokenizer(template=None, names=("<|endoftext|>", "<|im_start|>", "<|im_end|>")):
    trained = train_bpe([TEXT * 20], 280, "gpt2", names)
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return HuggingFaceTokenizer(
        trained._plain, settings={**settings, **({"chat_template": template} if template else {})}
    )


def test_a_chat_model_and_its_modelfile(tmp_path):
    _, path, _ = exported(tmp_path, {}, tok=special_tokenizer(CHATML), vocab_size=290)
    values, _ = fields(path)
    assert values["tokenizer.chat_template"] == CHATML
    ids = {"eos": 279, "eot": 279, "padding": 277}
    assert {name: values[f"tokenizer.ggml.{name}_token_id"] for name in ids} == ids
    assert values["tokenizer.ggml.tokens"][279:282] == ["<|im_end|>", "[UNUSED_280]", "[UNUSED_281]"]
    assert values["tokenizer.ggml.token_type"][277:281] == [3, 3, 3, 5]
    text = (path.parent / "Modelfile").read_text()
    assert text.startswith("FROM ./model.gguf\nTEMPLATE ")
    assert "{{- range .Messages }}<|im_start|>{{ .Role }}" in text
    assert 'PARAMETER stop "<|im_end|>"' in text and "PARAMETER num_ctx 128" in text
    assert not is_chatml("{{ messages[0].content }}") and not is_chatml("{% for %}")
    assert not is_chatml("{{ messages[9].content.x.y }}")


def test_a_model_that_completes_and_one_file_alone(tmp_path):
    model = random_model({})
    lines = []
    path = export_model(source(model, tokenizer()), tmp_path / "a.gguf", "gguf", "f32", lines.append)
    assert path == tmp_path / "a.gguf" and [p.name for p in tmp_path.iterdir()] == ["a.gguf"]
    assert any("Modelfile" in line for line in lines)
    with pytest.raises(RequestError, match="exists"):
        export_model(source(model, tokenizer()), tmp_path / "a.gguf", "gguf", "f32")
    folder = export_model(source(model, tokenizer()), tmp_path / "b", "gguf", "f32").parent
    assert 'TEMPLATE """{{ .Prompt }}"""' in (folder / "Modelfile").read_text()


def test_without_a_tokenizer(tmp_path):
    lines = []
    path = export_model(source(random_model({})), tmp_path / "a", "gguf", "f32", lines.append)
    assert fields(path)[0]["tokenizer.ggml.model"] == "no_vocab" and "no tokenizer" in lines[0]


def split_tokenizer(regex, **model_options):
    base = json.loads(train_bpe([TEXT * 20], 300, "llama3")._json)
    backend = tokenizers.Tokenizer.from_str(json.dumps({**base, "model": {**base["model"], **model_options}}))
    backend.pre_tokenizer = split_by(regex)
    return HuggingFaceTokenizer(backend)


@pytest.mark.parametrize(("tok", "message"), [
    (lambda: CharTokenizer.from_texts([TEXT]), "no vocabulary of single characters"),
    (lambda: split_tokenizer(CL100K), "white space at the end of a text as cl100k"),
    (lambda: split_tokenizer(r"\w+|\W+"), "does not split text by its rule: it knows gpt2"),
    (lambda: train_bpe([TEXT * 20], 280, "gpt2", ()), "no token that ends a text"),
    (lambda: tokenizer("gpt2", 301), "301 ids and the model only 300"),
    (lambda: train_sentencepiece([TEXT * 20], 310, "unigram"), "of SentencePiece models llama.cpp runs only BPE"),
])  # fmt: skip
def test_tokenizers_that_llama_cpp_cannot_be(tok, message):
    with pytest.raises(RequestError, match=message):
        vocabulary(tok(), random_model({}, vocab_size=300 if "301" in message else 310).config)


def test_rules_of_splitting():
    config = random_model({}).config
    names = {"gpt2": "gpt-2", "llama3": "llama-bpe", "qwen2": "qwen2", "gpt4o": "gpt-4o"}
    for pattern, name in names.items():
        found = vocabulary(tokenizer(pattern), config)
        assert found.keys["tokenizer.ggml.pre"] == name
        assert bool(found.notes) == (pattern == "gpt4o")
    # the same rule for a vocabulary that only merges has another name there
    assert (
        vocabulary(split_tokenizer(REGEXES["llama3"], ignore_merges=False), config).keys["tokenizer.ggml.pre"]
        == "smaug-bpe"
    )
    # and the others are exact for one that takes words whole only if merges make them too
    assert (
        vocabulary(split_tokenizer(REGEXES["qwen2"], ignore_merges=True), config).keys["tokenizer.ggml.pre"] == "qwen2"
    )
    whole = json.loads(split_tokenizer(REGEXES["qwen2"], ignore_merges=True)._json)
    whole["model"]["vocab"]["zebra"] = 300
    tok = HuggingFaceTokenizer(tokenizers.Tokenizer.from_str(json.dumps(whole)))
    with pytest.raises(RequestError, match="takes words of its vocabulary whole"):
        vocabulary(tok, config.model_copy(update={"vocab_size": 301}))


def test_a_sentencepiece_bpe(tmp_path):
    pytest.importorskip("sentencepiece")
    tok = train_sentencepiece([TEXT * 20], 310, "bpe")
    _, path, _ = exported(tmp_path, {"qk_norm": "none"}, tok=tok, vocab_size=310)
    values, _ = fields(path)
    assert values["tokenizer.ggml.model"] == "llama"
    assert values["tokenizer.ggml.tokens"] == [piece.text for piece in tok.model.pieces]
    assert values["tokenizer.ggml.scores"] == [piece.score for piece in tok.model.pieces]
    assert values["tokenizer.ggml.token_type"] == [int(piece.kind) for piece in tok.model.pieces]
    assert values["tokenizer.ggml.add_space_prefix"] is False and values["tokenizer.ggml.add_bos_token"] is False


def test_damage_is_named(tmp_path):
    _, path, _ = exported(tmp_path, {})
    content = path.read_bytes()
    for size in (0, 3, 20, 200, 5000, len(content) - 100):
        (tmp_path / "cut.gguf").write_bytes(content[:size])
        with pytest.raises(WorkError, match=r"cut.gguf is not a whole GGUF file"):
            read_gguf(tmp_path / "cut.gguf")
    (tmp_path / "x.gguf").write_bytes(content.replace(b"qwen3.block_count", b"qwen3.block_c0unt"))
    with pytest.raises(RequestError, match="block_count=None"):
        read_gguf(tmp_path / "x.gguf")
    (tmp_path / "x.gguf").write_bytes(content.replace(b"blk.1.attn_k.weight", b"blk.1.attn_X.weight"))
    with pytest.raises(WorkError, match=r"lacks the tensor blk.1.attn_k.weight"):
        read_gguf(tmp_path / "x.gguf")
    with pytest.raises(RequestError, match="does not exist"):
        read_gguf(tmp_path / "nothing.gguf")
    with pytest.raises(RequestError, match="'bert' is not known here: known ones are arcee, deepseek2, dots1"):
        find("bert", False)


def test_a_wrong_file_is_not_kept(tmp_path, monkeypatch):
    stored = writing.stored

    def wrong(name, tensor, type_name):
        return stored(name, -tensor if name == "blk.1.ffn_down.weight" else tensor, type_name)

    monkeypatch.setattr(writing, "stored", wrong)
    with pytest.raises(WorkError, match=r"the export is wrong: blk.1.ffn_down.weight"):
        exported(tmp_path, {})
    assert not any(tmp_path.iterdir())


def test_a_full_disk_and_numbers_that_are_none_are_called_what_they_are(tmp_path, monkeypatch):
    model = random_model(CASES["qwen3"][1])
    with monkeypatch.context() as patched:

        def stop(*arguments):
            raise OSError("4096 requested and 2808 written")  # numpy's

        patched.setattr(gguf.GGUFWriter, "write_tensor_data", stop)
        for out in (tmp_path / "out.gguf", tmp_path / "out"):
            with pytest.raises(WorkError, match=rf"^could not write {out}: no space left on device$"):
                export_model(source(model, tokenizer()), out, "gguf")
    model.norm.weight.data[3] = torch.nan
    with pytest.raises(WorkError, match=r"output_norm\.weight has numbers that are not finite"):
        export_model(source(model, tokenizer()), tmp_path / "out.gguf", "gguf")
    assert not list(tmp_path.iterdir())


def test_a_wrong_mapping_is_found_by_logits(tmp_path, monkeypatch):
    fold = writing.fold

    def wrong(state, *configs):
        state = fold(state, *configs)
        return {**state, "norm.weight": state["norm.weight"] * 1.01}

    monkeypatch.setattr(writing, "fold", wrong)
    for dtype in ("f32", "q8_0"):
        with pytest.raises(WorkError, match="the GGUF file is wrong: its logits differ"):
            exported(tmp_path, {}, dtype)
    assert not any(tmp_path.iterdir())


def test_without_the_package(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(RequestError, match=r'pip install "minigpt\[gguf\]"'):
        exported(tmp_path, {})
