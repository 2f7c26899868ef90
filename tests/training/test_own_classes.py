"""Runs with the user's own classes: killed at any moment and started again, they end with the same bytes."""

import contextlib
import hashlib
from pathlib import Path

import pytest
import torch

from minigpt.config import Section
from minigpt.training import Callback
from minigpt.training.callbacks import by_name, callback_tensors, load_callback_tensors

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

COUNTER = '''
from minigpt import Callback, Section

class Counter(Callback):
    """Adds `by` at each step and each evaluation, and writes down what it has at the end."""

    class Config(Section):
        by: int = 1

    def __init__(self, config):
        self.by, self.steps, self.losses = config.by, 0, []

    def on_validation_end(self, trainer, metrics):
        self.losses.append(metrics["val/loss"] * self.by)

    def on_train_batch_end(self, trainer, step):
        self.steps += self.by

    def on_train_end(self, trainer):
        (trainer.run_dir / f"counter-{self.by}.txt").write_text(f"{self.steps} {self.losses}")

    def state_dict(self):
        return {"steps": self.steps, "losses": list(self.losses)}

    def load_state_dict(self, state):
        self.steps, self.losses = state["steps"], list(state["losses"])
'''


@pytest.fixture
def settings(kit, tmp_path):
    """Every kind of class at once, and one of them twice."""
    (tmp_path / "counter.py").write_text(COUNTER)
    counter = {"kind": f"{tmp_path}/counter.py:Counter"}
    return kit.config(
        tokenizer={
            "kind": "bpe",
            "vocab_size": 262,
            "special_tokens": ["<|e|>", "<|prefix|>", "<|suffix|>", "<|middle|>"],
        },
        callbacks__sample={"every_steps": 3, "max_new_tokens": 6, "prompt": "1"},
        callbacks__own=[
            counter,
            {"kind": f"{EXAMPLES}/callback.py:WeightAverage", "decay": 0.7},
            {**counter, "by": 10},
        ],
        loggers__own=[{"kind": f"{EXAMPLES}/logger.py:MarkdownTable"}],
        objective={"kind": f"{EXAMPLES}/objective.py:FillInTheMiddle"},
        data__train={"kind": f"{EXAMPLES}/source.py:Sums", "documents": 200},
        model__mlp={"kind": f"{EXAMPLES}/model_part.py:PowerReGLU"},
    )


def whole(kit, folder):
    """The outcome, and what the user's classes wrote."""
    files = [folder / "average" / "model.safetensors", *sorted(folder.glob("counter-*.txt")), folder / "table.md"]
    assert len(files) == 4
    return kit.outcome(folder), [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def kill_and_resume(kit, chaos, killed, settings, folder, at):
    chaos.reset(at)
    with contextlib.suppress(killed):
        kit.train(settings, folder)
    label = chaos.moments[at] if at < len(chaos.moments) else "the end"
    chaos.reset()
    assert kit.train(settings, folder).exit_status == 0
    return whole(kit, folder), label


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in (1, 2))])
def test_killed_at_some_moments(tmp_path, kit, chaos, killed, settings, part):
    _, moments = kit.measure(chaos, settings, tmp_path)
    expected = whole(kit, tmp_path / "whole")
    for at in range((part + 1) * len(moments) // 13, len(moments), len(moments) // 4):
        found, label = kill_and_resume(kit, chaos, killed, settings, tmp_path / f"killed-{at}", at)
        assert found == expected, f"killed at moment {at}: {label}"


@pytest.mark.slow
@pytest.mark.parametrize("background", [True, False])
def test_killed_at_every_moment(tmp_path, kit, chaos, killed, settings, background):
    checkpoint = settings.checkpoint.model_copy(update={"background": background})
    settings = settings.model_copy(update={"checkpoint": checkpoint})
    _, moments = kit.measure(chaos, settings, tmp_path)
    expected = whole(kit, tmp_path / "whole")
    for at in range(len(moments)):
        found, label = kill_and_resume(kit, chaos, killed, settings, tmp_path / f"killed-{at}", at)
        assert found == expected, f"killed at moment {at}: {label}"


def stop_and_resume(kit, chaos, settings, folder, at, signal=15):
    chaos.reset(at, signal)
    kit.train(settings, folder)
    label = chaos.moments[at] if at < len(chaos.moments) else "the end"
    chaos.reset()
    assert kit.train(settings, folder).exit_status == 0
    return whole(kit, folder), label


@pytest.mark.parametrize("signal", [2, pytest.param(15, marks=pytest.mark.slow)])
def test_stopped_by_a_signal_at_some_moments(tmp_path, kit, chaos, settings, signal):
    """Then what was being done is saved, and undone or finished later."""
    _, moments = kit.measure(chaos, settings, tmp_path)
    expected = whole(kit, tmp_path / "whole")
    for at in range(len(moments) // 9 + signal, len(moments), len(moments) // 5):
        found, label = stop_and_resume(kit, chaos, settings, tmp_path / f"stopped-{at}", at, signal)
        assert found == expected, f"stopped at moment {at}: {label}"


@pytest.mark.slow
def test_stopped_by_a_signal_at_every_moment(tmp_path, kit, chaos, settings):
    _, moments = kit.measure(chaos, settings, tmp_path)
    expected = whole(kit, tmp_path / "whole")
    for at in range(len(moments)):
        found, label = stop_and_resume(kit, chaos, settings, tmp_path / f"stopped-{at}", at)
        assert found == expected, f"stopped at moment {at}: {label}"


def test_the_state_of_two_callbacks_of_one_class_is_kept_apart():
    class Holder(Callback):
        class Config(Section):
            pass

        def __init__(self, value: float) -> None:
            self.value = torch.tensor([value])

        def tensors(self):
            return {"a/b": self.value}

        def load_tensors(self, tensors):
            self.value = tensors["a/b"]

    class Other(Callback):
        pass

    first = [Holder(1.0), Other(), Holder(2.0), Holder(3.0)]
    assert list(by_name(first)) == ["Holder", "Other", "Holder#2", "Holder#3"]
    second = [Holder(0.0), Other(), Holder(0.0), Holder(0.0)]
    moments = {"embed.weight.exp_avg": torch.ones(2)}
    rest = load_callback_tensors(second, moments | callback_tensors(first))
    assert rest.keys() == moments.keys()
    assert [float(one.value) for one in second if isinstance(one, Holder)] == [1.0, 2.0, 3.0]


def test_a_callbacks_tensors_are_as_new_when_bad_steps_lead_back_to_the_beginning(tmp_path, kit, settings, monkeypatch):
    """Steps 1 and 2 are bad, so the run begins anew without their rows: its average is that of the steps it made."""
    from minigpt.objectives import PretrainObjective

    real, bad = PretrainObjective.training_step, [True] * 4
    monkeypatch.setattr(
        PretrainObjective, "training_step",
        lambda self, model, batch: (lambda found: (found[0] * (torch.nan if bad and bad.pop() else 1.0), *found[1:]))(
            real(self, model, batch)),
    )  # fmt: skip
    training = settings.training.model_copy(update={"max_bad_steps": 2})
    settings = settings.model_copy(update={"training": training})
    assert kit.train(settings, tmp_path / "run").exit_status == 0
    assert (tmp_path / "run" / "counter-1.txt").read_text().startswith("6 ")


VALIDATION = """
from minigpt import PretrainObjective

class FirstRows(PretrainObjective):
    def __init__(self, config, **given):
        super().__init__(**given)
        self.validation_rows = 2

    def validation_row(self, index):
        assert index < 2
        return super().validation_row(index)
"""


def test_an_objective_says_how_many_rows_it_validates_on(kit, tmp_path: Path) -> None:
    """Whatever the sets are that PretrainObjective has made of the validation text."""
    (tmp_path / "own.py").write_text(VALIDATION)
    settings = kit.config(objective__kind=f"{tmp_path / 'own.py'}:FirstRows", training__max_steps=3)
    assert kit.train(settings, tmp_path / "run").exit_status == 0
    assert any("val/loss" in line for line in kit.metrics(tmp_path / "run"))
