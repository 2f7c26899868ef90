"""stories260K, a model of llama2.c: its logits and text in float64, and its own bytes again after a round trip."""

import io
import json
import math
import random
import struct

import numpy as np
import pytest
import torch

from minigpt.cli import main
from minigpt.config import ModelConfig, RequestError, WorkError
from minigpt.inference import load
from minigpt.interop.exporting import export_model, open_source
from minigpt.interop.importing import import_model
from minigpt.interop.llama2c import read_llama2c, write_llama2c
from minigpt.interop.llama2c_tokenizer import tokenizer_bin
from minigpt.model import GPT
from minigpt.storage import build_model, save_model
from minigpt.tokenizer import CharTokenizer, load_tokenizer, train_sentencepiece
from minigpt.tokenizer.llama2c import Llama2cTokenizer
from minigpt.tokenizer.sentencepiece import SentencePieceTokenizer

CONFIG = ModelConfig(n_layer=2, n_head=4, n_kv_head=2, n_embd=24, n_inner=40, vocab_size=300, context_length=10,
                     norm_eps=1e-5, qk_norm="none", mlp="swiglu")  # fmt: skip


def build(imported) -> GPT:
    model = GPT(imported.config)
    model.load_state_dict(dict(imported.tensors))
    return model.eval()


@pytest.fixture
def stories(test_data):
    return test_data("weights/stories260K")


@torch.no_grad()
def test_logits_losses_and_greedy_text_of_stories260k(stories):
    reference = json.loads((stories / "reference_float64.json").read_text())
    model = build(read_llama2c(stories / "stories260K.bin")).double()
    prompt = torch.tensor([reference["prompt_ids"]])
    logits = model(prompt)[0]
    # float64 on both sides; our rotation is computed in fp32, which is where the last digits go
    torch.testing.assert_close(logits[-1], torch.tensor(reference["prompt_logits_last"]).double(), rtol=0, atol=2e-5)
    nll = -logits[:-1].log_softmax(-1).gather(1, prompt[0, 1:, None]).mean()
    assert math.isclose(nll, reference["prompt_mean_nll"], abs_tol=1e-6)
    ids = reference["greedy_ids"]
    assert model(torch.tensor([ids[:-1]]))[0].argmax(-1).tolist() == ids[1:]


def test_the_commands_import_generate_and_give_back_the_same_bytes(stories, tmp_path, capsys):
    reference = json.loads((stories / "reference_float64.json").read_text())
    weights, tokens, model, out = (
        stories / "stories260K.bin",
        stories / "tok512.bin",
        tmp_path / "model",
        tmp_path / "o",
    )
    assert main(["import", str(weights), str(model), "--tokenizer", str(tokens)]) == 0
    assert main(["export", str(model), str(out), "--format", "llama2c"]) == 0, capsys.readouterr().err
    assert "verified" in capsys.readouterr().err
    assert (out / "model.bin").read_bytes() == weights.read_bytes()
    assert (out / "tokenizer.bin").read_bytes() == tokens.read_bytes()

    loaded = load(model, device="cpu")
    found = loaded.generate([1], max_new_tokens=200, temperature=0)
    assert found.ids == reference["greedy_ids"][1:]
    assert loaded.tokenizer.decode(found.ids).startswith(reference["greedy_text"])


@pytest.mark.slow
def test_the_bytes_come_back_from_hugging_face_and_gguf_too(stories, tmp_path, capsys):
    pytest.importorskip("gguf")

    def run(*arguments) -> None:
        assert main(list(map(str, arguments))) == 0, capsys.readouterr().err

    tokens = stories / "tok512.bin"
    run("import", stories / "stories260K.bin", tmp_path / "ours", "--tokenizer", tokens)
    for format in ("hf", "gguf"):
        out, back = tmp_path / format, tmp_path / f"{format}-back"
        run("export", tmp_path / "ours", out, "--format", format)
        run("import", out / "model.gguf" if format == "gguf" else out, back, "--tokenizer", tokens)
        run("export", back, tmp_path / f"{format}.bin", "--format", "llama2c")
        assert (tmp_path / f"{format}.bin").read_bytes() == (stories / "stories260K.bin").read_bytes()


def saved(tmp_path, tokenizer=None, **keys):
    config = ModelConfig.model_validate(CONFIG.model_dump() | keys)
    save_model(tmp_path / "m", config, GPT(config).state_dict(), tokenizer)
    return open_source(str(tmp_path / "m"))


def run_c(content: bytes, ids: list[int]) -> np.ndarray:
    """(T, vocab) logits as run.c computes them from a file's bytes, in float64."""
    dim, hidden, layers, heads, kv_heads, tokens, length = struct.unpack_from("<7i", content)
    shared, tokens, size = tokens > 0, abs(tokens), dim // heads
    rest = np.frombuffer(content, "<f4", offset=28).astype(np.float64)

    def take(*shape: int) -> np.ndarray:
        nonlocal rest
        found, rest = np.split(rest, [math.prod(shape)])
        return found.reshape(shape)

    embed, norm1, wq = take(tokens, dim), take(layers, dim), take(layers, dim, dim)
    wk, wv = take(layers, kv_heads * size, dim), take(layers, kv_heads * size, dim)
    wo, norm2, w1 = take(layers, dim, dim), take(layers, dim), take(layers, hidden, dim)
    w2, w3, norm = take(layers, dim, hidden), take(layers, hidden, dim), take(dim)
    take(2, length, size // 2)
    head = embed if shared else take(tokens, dim)
    assert rest.size == 0

    def rms(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight

    def turn(x: np.ndarray) -> np.ndarray:  # (T, heads * size): pairs of neighbours
        pairs = x.reshape(len(ids), -1, size // 2, 2)
        angle = np.arange(len(ids))[:, None] / 10000.0 ** (np.arange(0, size, 2) / size)
        turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angle)[:, None]
        return np.stack([turned.real, turned.imag], -1).reshape(len(ids), -1, size)

    x, future = embed[ids], np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    for i in range(layers):
        h = rms(x, norm1[i])
        q, k, v = turn(h @ wq[i].T), turn(h @ wk[i].T), (h @ wv[i].T).reshape(len(ids), -1, size)
        k, v = (np.repeat(t, heads // kv_heads, axis=1) for t in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(size) + future
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v)
        x = x + mixed.reshape(len(ids), dim) @ wo[i].T
        h = rms(x, norm2[i])
        gate = h @ w1[i].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w3[i].T)) @ w2[i].T
    return rms(x, norm) @ head.T


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 22))])
def test_exported_random_models_in_run_c(tmp_path, seed):
    draw = random.Random(seed)
    kv_heads, groups = draw.randint(1, 3), draw.randint(1, 3)
    keys = {"n_layer": draw.randint(1, 3), "n_head": kv_heads * groups, "n_kv_head": kv_heads,
            "n_embd": kv_heads * groups * 2 * draw.randint(1, 5), "n_inner": draw.randint(1, 50),
            "vocab_size": draw.randint(2, 90), "vocab_multiple": draw.choice([1, 16]),
            "context_length": draw.randint(1, 20), "tie_embeddings": draw.random() < 0.5}  # fmt: skip
    source = saved(tmp_path, **keys)
    torch.manual_seed(seed)
    for parameter in source.model.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.5)
    path = export_model(source, tmp_path / "out", "llama2c")
    ids = [draw.randrange(keys["vocab_size"]) for _ in range(keys["context_length"])]
    expected = torch.from_numpy(run_c(path.read_bytes(), ids)).float()
    torch.testing.assert_close(source.model(torch.tensor([ids]))[0], expected, rtol=1e-4, atol=1e-4)
    import_model(path, tmp_path / "back")
    torch.testing.assert_close(build_model(tmp_path / "back")(torch.tensor([ids]))[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("keys", [{}, {"tie_embeddings": False}, {"vocab_multiple": 64}, {"n_kv_head": 4}], ids=str)
def test_round_trip_of_our_own_models(tmp_path, keys):
    source = saved(tmp_path, **keys)
    path = export_model(source, tmp_path / "out", "llama2c")
    back = build(read_llama2c(path))
    assert back.config.tie_embeddings == source.config.tie_embeddings
    ids = torch.randint(300, (2, 10))
    torch.testing.assert_close(back(ids), source.model(ids), rtol=1e-5, atol=1e-5)
    for name, tensor in back.state_dict().items():
        assert torch.equal(tensor, source.model.state_dict()[name][: tensor.size(0)])
    dim, hidden, layers, heads, kv_heads, tokens, length = struct.unpack_from("<7i", path.read_bytes())
    assert (dim, hidden, layers, heads, length) == (24, 40, 2, 4, 10)
    assert tokens == (300 if source.config.tie_embeddings else -300) and kv_heads == source.config.kv_heads


def test_one_file_alone(tmp_path):
    export_model(saved(tmp_path), tmp_path / "alone.bin", "llama2c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.bin", "m"]
    assert read_llama2c(tmp_path / "alone.bin").config.n_embd == 24


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"norm_eps": 1e-6}, "norm_eps"),
        ({"qk_norm": "head"}, "qk_norm"),
        ({"position": "learned"}, "position"),
        ({"bias": True}, "bias"),
        ({"mlp": "gelu"}, "mlp"),
        ({"head_dim": 8}, "head_dim"),
        ({"rope_theta": 5e5}, "rope_theta"),
        ({"logit_softcap": 15.0}, "logit_softcap"),
        ({"attention_window": 4}, "attention_window"),
        ({"embedding_size": 12}, "embedding_size"),
    ],
)
def test_what_llama2c_cannot_say_is_refused_with_the_reason(tmp_path, keys, message):
    with pytest.raises(RequestError, match=f"llama2.c cannot say this model: it .*{message}"):
        export_model(saved(tmp_path, **keys), tmp_path / "out", "llama2c")
    assert not (tmp_path / "out").exists()


def sentencepiece(**options) -> SentencePieceTokenizer:
    """A BPE trained as Llama 2's was, but for its size."""
    library = pytest.importorskip("sentencepiece")
    written = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog and the other dogs"] * 20),
        model_writer=written, model_type="bpe", vocab_size=300, byte_fallback=True, minloglevel=2,
        normalization_rule_name="identity", remove_extra_whitespaces=False, **options,
    )  # fmt: skip
    return SentencePieceTokenizer(written.getvalue())


def test_llama_tokenizers_are_written_and_others_refused(tmp_path):
    trained = sentencepiece()
    written = Llama2cTokenizer(tokenizer_bin(trained, 300))
    for text in ("the other fox. Ünïcode", "  two  spaces\n"):
        assert written.encode(text) == trained.encode(text)
    assert written.eot_id == trained.eot_id
    with pytest.raises(RequestError, match="tokenizer: run\\.c gives other ids for"):
        tokenizer_bin(sentencepiece(add_dummy_prefix=False), 300)
    with pytest.raises(RequestError, match="tokenizer: piece 1 is not <s>"):
        tokenizer_bin(train_sentencepiece(iter(["the quick brown fox " * 20]), 280, "bpe"), 280)
    with pytest.raises(RequestError, match="tokenizer: it is no BPE of SentencePiece"):
        export_model(saved(tmp_path, CharTokenizer.from_texts(["abc"]), vocab_size=3), tmp_path / "out", "llama2c")
    with pytest.raises(RequestError, match="the tokenizer has 300, the model 512"):
        tokenizer_bin(trained, 512)


def test_the_tokenizer_beside_the_file_is_taken_if_it_fits(stories, tmp_path):
    (tmp_path / "tokenizer.bin").write_bytes((stories / "tok512.bin").read_bytes())
    (tmp_path / "a.bin").write_bytes((stories / "stories260K.bin").read_bytes())
    assert load_tokenizer(read_llama2c(tmp_path / "a.bin").tokenizer).vocab_size == 512
    with (tmp_path / "b.bin").open("xb") as file:
        write_llama2c(file, CONFIG, GPT(CONFIG).state_dict())
    other = read_llama2c(tmp_path / "b.bin")
    assert other.tokenizer is None and "has 512 tokens and the model 300" in other.notes[0]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", RequestError, "is not a llama2.c file: it is too short"),
        (struct.pack("<7i", *[1] * 7), RequestError, "its header would mean dim=1"),
        (struct.pack("<7i", 8, 8, 1, 2, 2, -4, 0), RequestError, "seq_len=0"),
        (struct.pack("<7i", 0x616B3432, 2, *[1] * 5), RequestError, "of version 2: minigpt reads version 0"),
        (struct.pack("<7i", *[2**30] * 4, 1, 4, 4), RequestError, "n_heads=1073741824"),
        (
            struct.pack("<7i", 2**20, 2**20, 2**20, 2, 1, 9, 9),
            WorkError,
            "is not a whole llama2.c file: it has 28 bytes",
        ),
        (struct.pack("<7i", 8, 8, 1, 2, 2, 4, 4) + bytes(100), WorkError, "it has 128 bytes and not the"),
    ],
)
def test_files_that_are_none(tmp_path, content, error, message):
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(error, match=message):
        read_llama2c(path)
