"""An export to transformers that is not the model is found and never published."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from test_export_hf import build, export, tiny

from minigpt.config import WorkError
from minigpt.interop.huggingface import writing


def test_what_is_written_wrong_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    right = writing.write_weights

    def wrong(folder: Path, tensors: Any, *rest: Any) -> None:
        right(folder, [(name, tensor.flip(0)) for name, tensor in tensors], *rest)

    monkeypatch.setattr(writing, "write_weights", wrong)
    with pytest.raises(WorkError, match="what was written is wrong: its logits differ from the model's"):
        export(build(tiny()), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_wrong_mapping_is_not_published_in_any_numbers(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    right = writing.as_represented

    def wrong(*args: Any) -> dict[str, torch.Tensor]:
        state = right(*args)
        return {**state, "norm.weight": state["norm.weight"] * 1.01}

    monkeypatch.setattr(writing, "as_represented", wrong)
    with pytest.raises(WorkError, match="is wrong: its logits differ from the model's"):
        export(build(tiny()), tmp_path / "out", dtype)
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_finite(tmp_path: Path):
    model = build(tiny())
    model.blocks[0].mlp.down.weight.data[0, 0] = float("nan")
    with pytest.raises(WorkError, match="logits that are not finite"):
        export(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())
