"""Merged weights against the papers' formulas, computed with numpy in float64 on whole models at once."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.cli import main
from minigpt.config import ModelConfig, RequestError, WorkError
from minigpt.interop.importing import import_model
from minigpt.interop.merge import sources
from minigpt.interop.merge.methods import _thresholds
from minigpt.interop.merge.run import merge_models
from minigpt.model import GPT
from minigpt.storage import build_model, load_model_config, load_state, save_checkpoint, save_model, verify_folder
from minigpt.tokenizer import CharTokenizer

CONFIG = ModelConfig(n_layer=2, n_head=2, n_kv_head=1, n_embd=16, n_inner=32, vocab_size=7, context_length=8)
TEXT = "abcdefg"


def weights(seed: int, like: dict | None = None, size: float = 0.1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if like is None:
        return {
            name: torch.randn(tensor.shape, generator=generator) for name, tensor in GPT(CONFIG).state_dict().items()
        }
    return {name: tensor + size * torch.randn(tensor.shape, generator=generator) for name, tensor in like.items()}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A base and three models that were made from it, in small blocks so that tensors are cut."""
    monkeypatch.setattr(sources, "BLOCK", 300)
    base = weights(0)
    states = {"base": base, "a": weights(1, base), "b": weights(2, base), "c": weights(3, base)}
    for name, state in states.items():
        save_model(tmp_path / name, CONFIG, state, CharTokenizer.from_texts([TEXT]))
    return tmp_path, states


def vector(state: dict[str, torch.Tensor]) -> np.ndarray:
    return np.concatenate([state[name].double().numpy().ravel() for name in sorted(state)])


def merged(folders, names: str, **options) -> np.ndarray:
    folder, _ = folders
    if "base" in options:
        options["base"] = folder / options["base"]
    out = merge_models(folder / "out", [folder / name for name in names], **options)
    verify_folder(out)
    assert load_model_config(out) == CONFIG
    build_model(out)
    return vector(load_state(out))


def near(got: np.ndarray, expected: np.ndarray) -> None:
    """Both were computed in float64; the file has fp32, whose rounding is half of 2^-23 of a number."""
    np.testing.assert_allclose(got, expected, rtol=2**-24, atol=1e-15)


def test_linear_is_the_weighted_mean(folders):
    a, b, c = (vector(folders[1][name]) for name in "abc")
    near(merged(folders, "abc"), (a + b + c) / 3)


def test_linear_weights_are_ratios_and_may_leave_the_segment(folders):
    a, b = (vector(folders[1][name]) for name in "ab")
    near(merged(folders, "ab", weights=(6.0, -2.0)), 1.5 * a - 0.5 * b)


def test_a_model_merged_with_itself_is_itself(folders):
    a = vector(folders[1]["a"])
    for number, method in enumerate(("linear", "ema", "slerp")):
        out = merge_models(folders[0] / f"out{number}", [folders[0] / "a"] * 2, method=method)
        assert np.array_equal(vector(load_state(out)), a)


def test_moving_average(folders):
    a, b, c = (vector(folders[1][name]) for name in "abc")
    near(merged(folders, "abc", method="ema", decay=0.7), 0.7 * (0.7 * a + 0.3 * b) + 0.3 * c)


def test_slerp_goes_along_the_arc_of_each_tensor(folders):
    found = merged(folders, "ab", method="slerp", weights=(3.0, 1.0))
    expected = {}
    for name, a in folders[1]["a"].items():
        a, b = a.double().numpy(), folders[1]["b"][name].double().numpy()
        cosine = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
        angle = np.arccos(cosine)
        expected[name] = torch.tensor((np.sin(0.75 * angle) * a + np.sin(0.25 * angle) * b) / np.sin(angle))
    near(found, vector(expected))


def test_slerp_of_vectors_of_one_length_keeps_the_length_and_of_lines_is_the_line(folders):
    folder, states = folders
    turned = {name: tensor.flip(0) for name, tensor in states["a"].items()}
    save_model(folder / "turned", CONFIG, turned, None)
    found = load_state(merge_models(folder / "arc", [folder / "a", folder / "turned"], method="slerp"))
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.norm(), states["a"][name].norm(), rtol=1e-6, atol=0)

    for factor, weight in ((2.0, 0.25), (-1.0, 0.25), (0.0, 0.5)):
        save_model(folder / "line", CONFIG, {name: factor * t for name, t in states["a"].items()}, None, replace=True)
        out = merge_models(folder / f"out{factor}", [folder / "a", folder / "line"], method="slerp",
                           weights=(1 - weight, weight))  # fmt: skip
        near(vector(load_state(out)), (1 - weight + weight * factor) * vector(states["a"]))


def test_task_arithmetic(folders):
    base, a, b = (vector(folders[1][name]) for name in ("base", "a", "b"))
    found = merged(folders, "ab", method="task-arithmetic", base="base", weights=(1.0, -0.5), scale=0.4)
    near(found, base + 0.4 * ((a - base) - 0.5 * (b - base)))


def test_one_change_can_be_negated(folders):
    base, a = vector(folders[1]["base"]), vector(folders[1]["a"])
    near(merged(folders, "a", method="task-arithmetic", base="base", scale=-1.0), 2 * base - a)


def ties(base: np.ndarray, models: list[np.ndarray], density: float, scale: float) -> np.ndarray:
    """Algorithm 1 of Yadav et al. 2023."""
    trimmed = []
    for model in models:
        change = model - base
        keep = round(density * change.size)
        order = np.argsort(-np.abs(change), kind="stable")[:keep]
        trimmed.append(np.zeros_like(change))
        trimmed[-1][order] = change[order]
    changes = np.stack(trimmed)
    elected = np.sign(changes.sum(0))
    agree = (np.sign(changes) == elected) & (elected != 0)
    return base + scale * np.where(agree, changes, 0).sum(0) / np.maximum(agree.sum(0), 1)


@pytest.mark.parametrize("density", [0.2, 1.0])
def test_ties(folders, density):
    base, a, b, c = (vector(folders[1][name]) for name in ("base", "a", "b", "c"))
    found = merged(folders, "abc", method="ties", base="base", density=density, scale=0.7)
    near(found, ties(base, [a, b, c], density, 0.7))


def test_ties_trims_a_whole_model_and_not_tensor_by_tensor(folders):
    """A model that changed one tensor more than all others keeps the changes of that one."""
    folder, states = folders
    loud = weights(5, states["base"], 1e-4)
    loud["embed.weight"] = states["base"]["embed.weight"] + 1.0
    save_model(folder / "loud", CONFIG, loud, None)
    share = loud["embed.weight"].numel() / sum(tensor.numel() for tensor in loud.values())
    out = merge_models(folder / "out", [folder / "loud"], method="ties", base=folder / "base", density=share)
    for name, tensor in load_state(out).items():
        assert torch.equal(tensor, (loud if name == "embed.weight" else states["base"])[name])


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=60), st.floats(0.01, 1.0))
@settings(max_examples=60, deadline=None)
def test_the_threshold_is_the_kth_largest_magnitude(numbers, density):
    values = torch.tensor(numbers, dtype=torch.float64)
    block = sources.Block("x", 0, [values], torch.zeros_like(values))
    wanted = max(1, round(density * len(numbers)))
    assert _thresholds(lambda: iter([block]), 1, density) == [sorted(map(abs, numbers), reverse=True)[wanted - 1]]


def test_dare_keeps_a_share_of_the_changes_and_enlarges_it(folders):
    base, a = vector(folders[1]["base"]), vector(folders[1]["a"])
    found = merged(folders, "a", method="dare", base="base", density=0.3, seed=4)
    kept = found != base
    near(found[kept], (base + (a - base) / 0.3)[kept])
    assert abs(kept.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / kept.size)


def test_dare_is_decided_by_its_seed(folders):
    folder, _ = folders
    models, options = [folder / "a", folder / "b"], {"method": "dare", "base": folder / "base"}
    one, same, other = (
        (merge_models(folder / f"out{i}", models, seed=seed, **options) / "model.safetensors").read_bytes()
        for i, seed in enumerate((1, 1, 2))
    )
    assert one == same != other


def test_dare_without_dropping_is_task_arithmetic(folders):
    base, a, b = (vector(folders[1][name]) for name in ("base", "a", "b"))
    near(merged(folders, "ab", method="dare", base="base", density=1.0), a + b - base)


def test_the_last_checkpoints_of_a_run(tmp_path, capsys):
    run, states = tmp_path / "run", [weights(seed) for seed in range(4)]
    for step, state in enumerate(states, start=1):
        save_checkpoint(run, step, model_config=CONFIG, model_state=state, optimizer_state={}, trainer_state={},
                        tokenizer=CharTokenizer.from_texts([TEXT]))  # fmt: skip
    assert main(["merge", str(tmp_path / "soup"), str(run), "--last", "3"]) == 0
    near(vector(load_state(tmp_path / "soup")), sum(map(vector, states[1:])) / 3)
    said = json.loads((tmp_path / "soup" / "config.json").read_text())["extra"]["merge"]
    assert said == {"method": "linear", "last": 3, "models": ["step-00000002", "step-00000003", "step-00000004"]}

    import_model(run / "checkpoints" / "last", tmp_path / "imported")  # a pointer, which is a file
    near(vector(load_state(tmp_path / "imported")), vector(states[-1]))

    damaged = run / "checkpoints" / "step-00000003" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    assert main(["merge", str(tmp_path / "ema"), str(run), "--last", "3", "--method", "ema", "--decay", "0.5"]) == 0
    assert "step-00000003 is damaged" in capsys.readouterr().err
    a, b, d = (vector(states[i]) for i in (0, 1, 3))
    near(vector(load_state(tmp_path / "ema")), 0.25 * a + 0.25 * b + 0.5 * d)
    with pytest.raises(RequestError, match="has only 3 usable checkpoints, not --last=4"):
        merge_models(tmp_path / "no", [run], last=4)


def test_the_command_gives_a_model_that_generates(folders, capsys):
    folder, _ = folders
    arguments = ["merge", folder / "out", folder / "a", folder / "b", "--weights", "0.5,0.5"]
    assert main(list(map(str, arguments))) == 0
    assert "merged 2 models by linear into" in capsys.readouterr().err
    assert main(["generate", str(folder / "out"), "--prompt", "ab", "--max-new-tokens", "3", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.strip()


def test_hugging_face_folders_can_be_merged_too(test_data, tmp_path):
    """Of the same model as ours, whose tensors are in another order and transposed."""
    theirs = test_data("weights/tiny-random-gpt2")
    import_model(theirs, tmp_path / "ours")
    state = load_state(tmp_path / "ours")
    moved = {name: tensor + 1.0 for name, tensor in state.items()}
    save_model(tmp_path / "moved", load_model_config(tmp_path / "ours"), moved, None)
    for number, models in enumerate(([theirs, tmp_path / "moved"], [tmp_path / "moved", theirs])):
        out = merge_models(tmp_path / f"out{number}", models)
        near(vector(load_state(out)), (vector(state) + vector(moved)) / 2)
        assert json.loads((out / "config.json").read_text())["model_type"] == "minigpt"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "average"}, "--method=average is not possible: choose one of linear, ema, slerp"),
        ({"density": 0.5}, "--density has no effect with --method=linear: it belongs to ties and dare"),
        ({"method": "ties"}, "--method=ties adds up changes of a model: say with --base"),
        ({"weights": (1.0,)}, "--weights=1 are 1 numbers for 2 models"),
        ({"weights": (1.0, -1.0)}, "they sum to zero"),
        ({"weights": (1.0, float("nan"))}, "must be finite"),
        ({"weights": (2.0, -1.0), "method": "slerp"}, "none may be negative"),
        ({"method": "ties", "base": "a", "density": 0.0}, "--density=0.0 is not possible"),
        ({"method": "ema", "decay": 1.0}, "--decay=1.0 is not possible"),
        ({"last": 3}, "--last takes the checkpoints of one run: give one run folder, not 2"),
    ],
)
def test_wrong_options_are_one_sentence(folders, options, message):
    folder, _ = folders
    with pytest.raises(RequestError, match=message):
        merge_models(folder / "out", [folder / "a", folder / "b"], **options)
    assert not (folder / "out").exists()


def test_numbers_that_no_longer_fit_are_not_written(folders):
    for options in ({"weights": (1e308, 1e308)}, {"method": "task-arithmetic", "base": "base", "scale": 1e300}):
        with pytest.raises(WorkError, match=r"the merged tensor \S+ has numbers that are too large"):
            merged(folders, "ab", **options)
        assert sorted(path.name for path in folders[0].iterdir()) == ["a", "b", "base", "c"]


def test_an_empty_folder_is_no_obstacle(folders):
    (folders[0] / "out").mkdir()
    merged(folders, "aa")


def test_wrong_models_are_one_sentence(folders):
    folder, states = folders
    a = folder / "a"

    def refused(message: str, *models, error=RequestError, out=folder / "out", **options) -> None:
        before = sorted(path.name for path in folder.iterdir())
        with pytest.raises(error, match=message):
            merge_models(out, models, **options)
        assert sorted(path.name for path in folder.iterdir()) == before

    refused("merging takes two models or more", a)
    refused("slerp goes from one model to another: give two models, not 3", a, a, a, method="slerp")
    refused("model .*/nothing does not exist", a, folder / "nothing")
    refused("could not write .*config.json.out", a, a, error=WorkError, out=a / "config.json" / "out")
    refused("has no usable checkpoints: --last takes those of a run folder", a, last=2)

    config = CONFIG.model_copy(update={"n_inner": 40})
    save_model(folder / "wide", config, GPT(config).state_dict(), None)
    refused("cannot be merged: model.n_inner is 32 in the one and 40 in the other", a, folder / "wide")
    config = CONFIG.model_copy(update={"vocab_multiple": 8})
    save_model(folder / "padded", config, GPT(config).state_dict(), None)
    refused("the tensor embed.weight has the shape .7, 16. in the one and .8, 16. in the other", a, folder / "padded")
    save_model(folder / "words", CONFIG, states["a"], CharTokenizer.from_texts(["hijklmn"]))
    refused("their tokenizers have different vocabularies", a, folder / "words")
    refused("their tokenizers have different vocabularies", a, method="ties", base=folder / "words")

    broken = {**states["a"], "norm.weight": torch.full((16,), torch.nan)}
    save_model(folder / "broken", CONFIG, broken, None)
    refused("its tensor norm.weight has numbers that are not finite", a, folder / "broken", error=WorkError)
    weights = folder / "b" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    refused("b is damaged: model.safetensors has 100 bytes", a, folder / "b", error=WorkError)
    (folder / "b" / "MANIFEST.json").unlink()
    refused("b is damaged: model.safetensors is not a whole safetensors file", a, folder / "b", error=WorkError)


def test_what_exists_is_not_overwritten(folders, capsys):
    folder, states = folders
    assert main(["merge", *(str(folder / name) for name in "abc")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert torch.equal(load_state(folder / "a")["norm.weight"], states["a"]["norm.weight"])


def test_a_wrong_list_of_weights_is_one_sentence(folders, capsys):
    assert main(["merge", "out", "a", "b", "--weights", "1;2"]) == 2
    assert "--weights=1;2 is not possible" in capsys.readouterr().err
