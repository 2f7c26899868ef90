"""Real networks: from a folder on disk, and the engine on the real cache against the full forward pass."""

from pathlib import Path

import pytest
import torch

from minigpt.config import GenerationConfig, ModelConfig, RequestError
from minigpt.inference import Generation, LoadedModel, generate, load, pick_device
from minigpt.model import GPT
from minigpt.storage import save_model
from minigpt.tokenizer import Tokenizer, train_bpe


def tiny(vocab_size: int, **options: object) -> GPT:
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 16, "vocab_size": vocab_size}
    config = ModelConfig.model_validate({**sizes, "init_std": 0.2, **options})
    return GPT(config, generator=torch.Generator().manual_seed(0)).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["hello hello world. one two three"] * 3, 270, "gpt2", ["<|endoftext|>"])


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    model = tiny(tokenizer.vocab_size)
    save_model(tmp_path / "m", model.config, model.state_dict(), tokenizer)
    return tmp_path / "m"


@torch.no_grad()
def greedy_by_full_forward(model: GPT, prompt: list[int], count: int) -> tuple[list[int], float]:
    """Tokens without a cache, and the smallest lead of the best token over the second."""
    window, out, lead = list(prompt), [], float("inf")
    for _ in range(count):
        logits = model(torch.tensor([window[-16:]]))[0, -1]
        best = logits.topk(2).values
        lead = min(lead, float(best[0] - best[1]))
        out.append(int(logits.argmax()))
        window.append(out[-1])
        if len(window) > 16:
            window = window[-8:]
    return out, lead


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"position": "learned", "norm": "layernorm", "mlp": "gelu", "bias": True, "qk_norm": False},
        {"n_head": 4, "n_kv_head": 2, "logit_softcap": 15.0, "vocab_multiple": 64, "tie_embeddings": False},
    ],
)
def test_batches_on_the_cache_equal_the_full_forward(options: dict[str, object]) -> None:
    """Greedy, ragged prompts, beyond the context. Exact, since every lead is far above fp32 rounding (about 1e-5)."""
    model = tiny(50, **options)
    prompts = [[1], [4, 5, 6, 7, 8], list(range(14)), list(range(16))]
    expected = [greedy_by_full_forward(model, prompt, 40) for prompt in prompts]
    assert min(lead for _, lead in expected) > 1e-4
    found = generate(model, None, prompts, GenerationConfig(max_new_tokens=40, temperature=0.0))
    assert [g.ids for g in found] == [ids for ids, _ in expected]


def test_greedy_equals_transformers_gpt2() -> None:
    """Our engine on weights copied from a transformers GPT-2, against its own `generate`."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.2}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, eos_token_id=None, bos_token_id=None)).eval()
    classic = {"position": "learned", "norm": "layernorm", "norm_eps": 1e-5, "mlp": "gelu_tanh", "bias": True}
    ours = tiny(50, **classic, qk_norm=False, context_length=64)
    ours.load_state_dict(_from_gpt2(theirs.state_dict()))
    prompt = [3, 1, 4, 1, 5]
    expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=30, do_sample=False, repetition_penalty=1.3)
    config = GenerationConfig(max_new_tokens=30, temperature=0.0, repetition_penalty=1.3)
    assert generate(ours, None, [prompt], config)[0].ids == expected[0, 5:].tolist()


def _from_gpt2(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {
        "ln_1": "attention_norm",
        "attn.c_attn": "attention.qkv",
        "attn.c_proj": "attention.out",
        "ln_2": "mlp_norm",
        "mlp.c_fc": "mlp.up",
        "mlp.c_proj": "mlp.down",
    }
    mapped = {"embed.weight": state["transformer.wte.weight"], "position.weight": state["transformer.wpe.weight"]}
    for name, tensor in state.items():
        if name.startswith("transformer.h."):
            layer, rest = name.removeprefix("transformer.h.").split(".", 1)
            part, kind = rest.rsplit(".", 1)
            matrix = kind == "weight" and tensor.dim() == 2  # Conv1D stores the transpose
            mapped[f"blocks.{layer}.{names[part]}.{kind}"] = tensor.T if matrix else tensor
        elif name.startswith("transformer.ln_f."):
            mapped[f"norm.{name.rpartition('.')[2]}"] = tensor
    return mapped


def test_load_generates_and_streams(folder: Path, tokenizer: Tokenizer) -> None:
    model = load(folder, device="cpu")
    assert isinstance(model, LoadedModel) and not model.model.training
    assert not any(p.requires_grad for p in model.model.parameters())
    found = model.generate("hello", max_new_tokens=20, seed=1, temperature=0.9)
    assert isinstance(found, Generation)
    assert "".join(model.stream("hello", max_new_tokens=20, seed=1, temperature=0.9)) == found.text
    assert model.generate(tokenizer.encode("hello"), max_new_tokens=20, seed=1, temperature=0.9) == found
    several = model.generate("hello", max_new_tokens=20, seed=1, temperature=0.9, num_samples=3)
    assert isinstance(several, list) and len(several) == 3 and several[0] == found
    assert model.generate("", max_new_tokens=5, seed=1) == model.generate(max_new_tokens=5, seed=1)


def test_a_single_stop_string_needs_no_list(folder: Path) -> None:
    model = load(folder, device="cpu")
    whole = model.generate("hello", max_new_tokens=30, seed=3)
    assert isinstance(whole, Generation)
    mark = whole.text[4]
    cut = model.generate("hello", max_new_tokens=30, seed=3, stop=mark)
    assert isinstance(cut, Generation) and cut.text == whole.text[: whole.text.index(mark)]


def test_the_weights_are_those_of_the_folder(folder: Path, tokenizer: Tokenizer) -> None:
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(load(folder, device="cpu").model(ids), tiny(tokenizer.vocab_size)(ids))
        assert load(folder, device="cpu", dtype="bf16").model(ids).dtype == torch.float32
    assert next(load(folder, device="cpu", dtype=torch.bfloat16).model.parameters()).dtype == torch.bfloat16


def test_bf16_generates(folder: Path) -> None:
    model = load(folder, device="cpu", dtype="bf16")
    assert (
        "".join(model.stream("hello", max_new_tokens=25, seed=1))
        == model.generate("hello", max_new_tokens=25, seed=1).text
    )


def test_repr_says_what_it_is(folder: Path) -> None:
    text = repr(load(folder, device="cpu"))
    for part in (str(folder), "parameters", "2 layers", "context 16", "270 token ids", "float32 on cpu"):
        assert part in text


def test_without_a_tokenizer(tmp_path: Path) -> None:
    model = tiny(50)
    save_model(tmp_path / "m", model.config, model.state_dict(), None)
    loaded = load(tmp_path / "m", device="cpu")
    found = loaded.generate([1, 2], max_new_tokens=5, seed=0)
    assert isinstance(found, Generation) and len(found.ids) == 5 and found.text == ""
    assert isinstance(loaded.generate(max_new_tokens=5), Generation)
    for call in (lambda: loaded.generate("hello"), lambda: loaded.stream([1])):
        with pytest.raises(RequestError, match="has no tokenizer"):
            call()
    assert "no tokenizer" in repr(loaded)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1.0}, r"unknown option temprature=1.0: the nearest one is temperature"),
        ({"temperature": -1.0}, r"temperature=-1.0 is not possible: expected greater than or equal to 0"),
        ({"top_k": 0}, r"top_k=0 is not possible"),
        ({"top_p": 1.5}, r"top_p=1.5 is not possible"),
        ({"max_new_tokens": "many"}, r"max_new_tokens='many' is not possible"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str, folder: Path) -> None:
    model = load(folder, device="cpu")
    with pytest.raises(RequestError, match=message):
        model.generate("hello", **options)
    with pytest.raises(RequestError, match=message):
        model.stream("hello", **options)  # at once, not at the first piece


def test_streaming_several_samples_is_refused(folder: Path) -> None:
    with pytest.raises(RequestError, match="num_samples=2"):
        load(folder, device="cpu").stream("hello", num_samples=2)


def test_wrong_ways_to_load(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        load(tmp_path / "nothing")
    with pytest.raises(RequestError, match=r"dtype=int8 is not possible: choose one of fp32, bf16, fp16"):
        load(folder, dtype="int8")
    with pytest.raises(RequestError, match="threads=0"):
        load(folder, threads=0)
    with pytest.raises(RequestError, match="device=gpu is not possible"):
        load(folder, device="gpu")


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(RequestError, match="no such device"):
        pick_device("cuda:99")


def test_threads_are_set(folder: Path) -> None:
    before = torch.get_num_threads()
    try:
        load(folder, device="cpu", threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
