"""Numbers of layers by which llama.cpp recognises published models, and then computes something else."""

import gc

import numpy as np
import pytest
import torch
from gguf_models import GEMMA, GEMMA2, random_model, tokenizer

pytest.importorskip("gguf")

from minigpt.config import ModelConfig, RequestError
from minigpt.interop.exporting import ExportSource, export_model
from minigpt.interop.gguf.architectures import represent

SIZES = {"n_head": 4, "n_embd": 64, "context_length": 128, "vocab_size": 300}
GEMMAS = {"gemma2": (46, GEMMA2), "gemma3": (62, GEMMA)}
OF_MEAN_WIDTH = 16**-0.5  # n_embd / n_head


@pytest.mark.parametrize("name", GEMMAS)
def test_gemmas_whose_scores_have_another_scale(name: str):
    layers, keys = GEMMAS[name]

    def found(**more: object) -> str:
        return represent(ModelConfig.model_validate({**SIZES, **keys, "head_dim": 24, **more})).architecture.name

    assert found(n_layer=layers, attention_scale=OF_MEAN_WIDTH) == name == found(n_layer=layers, head_dim=16)
    assert found(n_layer=layers - 1) == name
    with pytest.raises(RequestError, match=r"model.attention_scale=0.25 instead of 0.204"):
        found(n_layer=layers)


def test_exaone4_of_64_layers():
    config = ModelConfig.model_validate({**SIZES, "norm_place": "post", "n_layer": 63})
    assert represent(config).architecture.name == "exaone4"
    with pytest.raises(RequestError, match="no GGUF architecture represents this model"):
        represent(config.model_copy(update={"n_layer": 64}))


@pytest.mark.slow
@pytest.mark.parametrize("name", GEMMAS)
def test_in_llama_cpp(name: str, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (it is built from source)")
    layers, keys = GEMMAS[name]
    more = {"n_layer": layers, "head_dim": 24, "attention_scale": OF_MEAN_WIDTH, "init_std": 0.05}
    model = random_model({**keys, **more})
    path = export_model(ExportSource(tmp_path, model.config, tokenizer(), lambda: model), tmp_path / "m.gguf", "gguf")
    llm = llama_cpp.Llama(str(path), n_ctx=128, verbose=False, logits_all=True, type_k=0, type_v=0, flash_attn=False)
    ids = torch.randint(300, (1, 60), generator=torch.Generator().manual_seed(2))
    llm.eval(ids[0].tolist())
    got = torch.from_numpy(np.array(llm.scores[:60]))
    llm.close()
    gc.collect()
    expected = model(ids)[0]
    assert (got - expected).abs().max() <= 5e-3 * max(1.0, float(expected.abs().max()))  # GELU off a table of 16 bits
