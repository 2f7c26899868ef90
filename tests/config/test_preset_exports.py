"""Each preset's comment names the formats that represent it exactly; that is so, and it names no fewer for a family."""

import re
from importlib import resources

import pytest

from minigpt.config import ModelConfig, RequestError, load_config, preset_names
from minigpt.interop.gguf.architectures import represent as gguf
from minigpt.interop.huggingface.families import FAMILIES
from minigpt.interop.huggingface.family import unrepresented
from minigpt.interop.huggingface.represent import represent as hugging_face
from minigpt.interop.llama2c import Llama2c


def exports(name: str) -> str:
    text = (resources.files("minigpt.presets") / f"{name}.yaml").read_text("utf-8")
    comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    return comment.partition("Exports: ")[2]


def network(name: str) -> ModelConfig:
    model = load_config(name)[0].model
    return model if model.vocab_size else model.model_copy(update={"vocab_size": 32_768})


@pytest.mark.parametrize("name", preset_names())
def test_what_a_preset_says_of_its_exports(name: str) -> None:
    said = exports(name)
    assert said, "each preset says what it exports to"
    for architecture in re.findall(r"Hugging Face (\w+ForCausalLM|GPT2LMHeadModel)", said):
        found = hugging_face(network(name), FAMILIES)
        assert found.family.architecture == architecture
        assert all(key.endswith("_bias") for key in found.rewritten)  # biases that are missing become zeros
    for architecture in re.findall(r"llama\.cpp (\w+) model", said):
        assert gguf(network(name)).architecture.name == architecture
    if "llama2.c model" in said:
        assert not unrepresented(Llama2c(), network(name))
    if "no class of Hugging Face" in said:
        with pytest.raises(RequestError, match="no transformers class represents"):
            hugging_face(network(name), FAMILIES)
    if "nor GGUF" in said or "nor does GGUF" in said:
        with pytest.raises(RequestError, match="no GGUF architecture"):
            gguf(network(name))


@pytest.mark.parametrize(("name", "architecture"), [("d2", "qwen3"), ("d12", "qwen3"), ("d33", "qwen3")])
def test_the_dial_exports_exactly(name: str, architecture: str) -> None:
    assert hugging_face(network(name), FAMILIES).family.model_type == architecture
    assert gguf(network(name)).architecture.name == architecture
