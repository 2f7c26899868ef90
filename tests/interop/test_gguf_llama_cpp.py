"""llama.cpp itself runs our GGUF files: the same logits, the same greedy text, the same ids of every text."""

import gc
import json

import numpy as np
import pytest
import torch
from gguf_models import CASES, TEXT, random_model, tokenizer

pytestmark = pytest.mark.slow
pytest.importorskip("gguf")
llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (it is built from source)")

from minigpt.config import GenerationConfig  # noqa: E402
from minigpt.inference import generate  # noqa: E402
from minigpt.interop import import_model  # noqa: E402
from minigpt.interop.exporting import ExportSource, export_model, open_source  # noqa: E402
from minigpt.interop.gguf import read_gguf  # noqa: E402
from minigpt.tokenizer import train_sentencepiece  # noqa: E402

GELU_IS_A_TABLE = 2e-3
"""llama.cpp reads GELU off a table of 16 bits; everything else it computes in fp32 here."""

NASTY = [
    *(
        "",
        " ",
        "  ",
        "   \n  \n\n x",
        "\t\tx\r\n\r\n",
        "a" * 70,
        " a b  c   d    e",
        "x\n",
        "x \n ",
        "\n \n",
        "...",
        "?!?!",
    ),
    *("it's IT'S It'Ll we'd y'all've 'tis 'S 's", "don’t “quote” — dash", "1 12 123 1234 12345 1,234.5e-6 ½ ²³ ٣٤"),
    *(
        "naïve café Größe Ünïcödé ÉCOLE",
        "Привет, МИР",
        "γειά σου ΚΌΣΜΕ",
        "你好，世界！こんにちは 세계",
        "हिन्दी ไทย עברית العربية",
    ),
    *(
        "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 👍🏽",
        "e\u0301 a\u030a\u0323",
        "\u200b\u200d\ufeff\u00ad",
        "\u00a0\u2003\u3000x",
        "\x00\x01\x7f\x80\x9f",
    ),
    *(
        "<|endoftext|>",
        "<|endoftext|",
        "<s></s><unk>",
        "def f(x):\n    return x**2  # ok\n",
        "\U0001d518\U00010400\U0002070e",
    ),
    *("ǅ ǲ ʰ ª º ﬁ ſ İı", "price: $5.00/€4,50 @home #1 a_b-c", "\u2028\u2029\x85\x0b\x0cx", "'" * 9, "ﷺ𒐫꧅"),
]


@pytest.fixture
def run():
    """Loads a file into llama.cpp, everything in fp32, and frees it at the end of the test."""
    loaded = []

    def load(path, **options):
        exact = {"type_k": 0, "type_v": 0, "flash_attn": False}  # the cache in fp32
        loaded.append(llama_cpp.Llama(str(path), n_ctx=256, verbose=False, logits_all=True, **exact, **options))
        return loaded[-1]

    yield load
    for llm in loaded:
        llm.close()
    loaded.clear()
    gc.collect()


def export(model, tok, path, dtype="f32"):
    return export_model(ExportSource(path, model.config, tok, lambda: model), path, "gguf", dtype)


def logits(llm, ids):
    """(T, V)"""
    llm.reset()
    llm.eval(ids)
    return torch.from_numpy(np.array(llm.scores[: len(ids)]))


@pytest.mark.parametrize("name", CASES)
def test_logits_of_every_architecture(tmp_path, run, name):
    _, keys = CASES[name]
    model = random_model(keys)
    path = export(model, tokenizer(), tmp_path / "m.gguf")
    ids = torch.randint(300, (1, 100), generator=torch.Generator().manual_seed(2))
    got, expected = logits(run(path), ids[0].tolist()), model(ids)[0]
    tolerance = GELU_IS_A_TABLE if "gelu" in str(keys.get("mlp")) or "geglu" in str(keys.get("mlp")) else 2e-5
    assert (got - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(("dtype", "tolerance"), [("f16", 5e-3), ("bf16", 2e-2), ("q8_0", 3e-2), ("q4_0", 5e-2)])
def test_logits_of_other_numbers(tmp_path, run, dtype, tolerance):
    """Beside our own network with the rounded weights; llama.cpp rounds what it multiplies them with, too."""
    model = random_model({"n_kv_head": 2})
    path = export(model, tokenizer(), tmp_path / "m.gguf", dtype)
    ids = torch.randint(300, (1, 100), generator=torch.Generator().manual_seed(2))
    expected = read_gguf(path)(ids)[0]
    error = (logits(run(path), ids[0].tolist()) - expected).abs()
    assert float(error.mean()) <= tolerance * float(expected.abs().max())


def trained(keys, tok, steps=120):
    """A model that has read TEXT often enough to be sure of its words."""
    model = random_model({**keys, "init_std": 0.05}, vocab_size=tok.vocab_size).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = torch.tensor(tok.encode(TEXT * 20))
    starts = torch.Generator().manual_seed(0)
    for _ in range(steps):
        begin = torch.randint(len(rows) - 65, (8,), generator=starts)
        batch = torch.stack([rows[b : b + 65] for b in begin.tolist()])
        loss = model(batch[:, :-1], targets=batch[:, 1:].contiguous()) / (8 * 64)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "pattern"), [("gpt2", "gpt2"), ("qwen3", "qwen2"), ("llama", "llama3"), ("mixtral", "gpt4o")]
)
def test_greedy_text(tmp_path, run, name, pattern):
    tok = tokenizer(pattern)
    model = trained(CASES[name][1], tok)
    llm = run(export(model, tok, tmp_path / "m.gguf"))
    for prompt in ("It's a truth", "However little known", "We'll see: x"):
        ids = tok.encode(prompt)
        assert llm.tokenize(prompt.encode(), add_bos=True, special=False) == ids
        found = generate(model, tok, [ids], GenerationConfig(max_new_tokens=100, temperature=0.0))[0]
        llm.reset()
        theirs = []
        for token in llm.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
            theirs.append(token)
            if len(theirs) == len(found.ids):
                break
        assert theirs == found.ids
        assert llm.detokenize(theirs).decode(errors="replace") == tok.decode(found.ids)


@pytest.mark.parametrize("pattern", ["gpt2", "qwen2", "llama3", "gpt4o", "llama3 merging", "sentencepiece-bpe"])
def test_ids_of_nasty_texts(tmp_path, run, pattern, test_data):
    if pattern == "sentencepiece-bpe":
        pytest.importorskip("sentencepiece")
        tok = train_sentencepiece([TEXT * 20], 320, "bpe")
    else:
        tok = tokenizer(pattern.split()[0])
        if "merging" in pattern:
            from test_gguf_files import split_tokenizer

            from minigpt.tokenizer.patterns import REGEXES

            tok = split_tokenizer(REGEXES["llama3"], ignore_merges=False)
    model = random_model({"qk_norm": "none", "n_layer": 1}, vocab_size=tok.vocab_size)
    llm = run(export(model, tok, tmp_path / "m.gguf"))
    ascii_only = pattern == "gpt4o"  # llama.cpp spells that rule's classes of letters approximately
    for text in [*NASTY, "".join(NASTY), " ".join(NASTY[::-1])]:
        if text.isascii() or not ascii_only:
            assert llm.tokenize(text.encode(), add_bos=True, special=False) == tok.encode(text), repr(text)
    name = tok.eot_id
    special = next(token for token, i in tok.special_tokens.items() if i == name)
    text = f"a{special} b"
    assert llm.tokenize(text.encode(), add_bos=False, special=True) == tok.encode(text, allow_special=True)


def test_stories260k(tmp_path, run, test_data):
    folder = test_data("weights/stories260K")
    reference = json.loads((folder / "reference_float64.json").read_text())
    import_model(folder / "stories260K.bin", tmp_path / "model", tokenizer=folder / "tok512.bin")
    path = export_model(open_source(str(tmp_path / "model")), tmp_path / "stories", "gguf", "f32")
    llm = run(path)
    got = logits(llm, reference["prompt_ids"])[-1]
    torch.testing.assert_close(got, torch.tensor(reference["prompt_logits_last"]), atol=1e-4, rtol=1e-4)
    llm.reset()
    ids = reference["greedy_ids"]
    theirs = []
    for token in llm.generate(ids[:1], temp=0.0, top_k=1, repeat_penalty=1.0):
        theirs.append(token)
        if len(theirs) == len(ids) - 1:
            break
    assert theirs == ids[1:]
    tok = open_source(str(tmp_path / "model")).tokenizer
    for text in ("Once upon a time", "  Lily's naïve café", "a\n\nb\t1234"):
        assert llm.tokenize(text.encode(), add_bos=True, special=False) == [1, *tok.encode(text)]


def test_a_model_without_a_tokenizer(tmp_path, run):
    model = random_model({})
    ids = torch.randint(300, (1, 50), generator=torch.Generator().manual_seed(2))
    got = logits(run(export(model, None, tmp_path / "m.gguf")), ids[0].tolist())
    torch.testing.assert_close(got, model(ids)[0], atol=1e-4, rtol=1e-4)
