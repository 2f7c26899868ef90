"""TF32 and float8: where they are not, a run says so in one sentence."""

import importlib.util
import logging

import pytest
import torch

from minigpt.config import ModelConfig, RequestError
from minigpt.model import GPT
from minigpt.model.float8 import require_float8, use_float8
from minigpt.training.setup import settle_arithmetic

GPU = torch.device("cuda")


def test_tf32_is_left_out_of_a_run_without_such_a_gpu(kit, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        config = settle_arithmetic(kit.config(training__tf32=True), torch.device("cpu"))
    assert not config.training.tf32
    assert [record.message for record in caplog.records] == [
        "training.tf32=true is left out: it is arithmetic of NVIDIA's GPUs, and this is cpu"
    ]


@pytest.mark.parametrize("wanted", [True, False])
def test_on_a_gpu_fp32_is_fp32_unless_the_config_says_tf32(wanted: bool, kit) -> None:
    config, before = kit.config(training__tf32=wanted), torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = not wanted
        assert settle_arithmetic(config, GPU) == config and torch.backends.cuda.matmul.allow_tf32 is wanted
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_float8_is_refused_where_it_cannot_be(kit, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = kit.config(training__float8=True, training__precision="bf16")
    with pytest.raises(RequestError, match=r"needs a GPU with float8 products \(Hopper or newer\), which cpu has not"):
        kit.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(RequestError, match=r"which NVIDIA A100 has not: leave it out$"):
        require_float8(GPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"needs torchao: pip install 'minigpt\[float8\]'"):
        require_float8(GPU)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    require_float8(GPU)


def test_float8_takes_the_large_products_of_the_blocks_and_leaves_their_names() -> None:
    """Emulated, so that it runs anywhere: the same network to float8's two or three bits."""
    pytest.importorskip("torchao")
    shape = {"n_layer": 2, "n_head": 4, "n_embd": 64, "context_length": 32, "vocab_size": 97, "n_inner": 96}
    moe = {"moe": {"n_expert": 16, "n_shared": 1, "first_dense": 1}}
    model = GPT(ModelConfig(**(shape | moe)), generator=torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    names, ids = list(model.state_dict()), torch.randint(97, (2, 32), generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(ids).detach()
        assert use_float8(model.blocks, emulate=True) == 4 + 2 + 2  # attention twice, an MLP, and the shared expert
        found = model(ids).detach()
        model(ids, targets=ids).backward()
    assert list(model.state_dict()) == names and type(model.blocks[1].mlp.router) is torch.nn.Linear
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.1
