"""The examples do what they say, by an account that does not use them."""

import json
import random
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import minigpt
from minigpt.cli import main
from minigpt.config import RequestError, load_config
from minigpt.config.extension import load_class
from minigpt.data import TokenDataset
from minigpt.model.count import count_parameters
from minigpt.objectives import PretrainObjective
from minigpt.storage import load_state
from minigpt.tokenizer import CharTokenizer, train_bpe
from minigpt.training import Callback, train

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = ("callback", "logger", "objective", "source", "model_part")


def class_of(name: str, kind: str) -> type:
    return load_class(f"{EXAMPLES / name}.py:{kind}", None, "test")


# ---- each of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_its_resolved_config_repeats_it(name, trained):
    run = trained(name)
    assert main(["train", str(run / "config.yaml"), "--run-dir", "again"]) == 0
    first, again = (load_state(Path(folder) / "model") for folder in ("run", "again"))
    assert first.keys() == again.keys() and all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_short_and_says_how_to_run_it(name):
    text = (EXAMPLES / f"{name}.py").read_text("utf-8")
    assert f"minigpt train examples/{name}.yaml" in text and len(text.splitlines()) <= 90
    readme = (EXAMPLES / "README.md").read_text("utf-8")
    assert f"[{name}.py]({name}.py)" in readme


@pytest.mark.parametrize("name", NAMES)
def test_the_dry_run_knows_it(name, capsys, tiny):
    assert main([*tiny(name)[:-2], "--dry-run"]) == 0
    assert not Path("runs").exists() and ("sha256: " in capsys.readouterr().out) is (name != "logger")


def test_the_commands_of_the_readme(tmp_path, tiny):
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("*.ipynb"))
    (tmp_path / "input.txt").write_text("".join(random.Random(0).choices("abcdef \n", k=20_000)))
    lines = (EXAMPLES / "README.md").read_text("utf-8").split("```sh\n")[1].split("```")[0].splitlines()
    for number, line in enumerate(lines):
        program, *arguments = shlex.split(line)
        small = [
            *tiny("callback")[2:-1],
            f"run{number}",
            "model.n_head=2",
            "model.context_length=64",
            "training.micro_batch=1",
        ]
        assert program == "minigpt" and main([*arguments, *small]) == 0, line
    assert len(lines) == 3


# ---- the callback ----------------------------------------------------------------------------------------------------


class Recorder(Callback):
    """The weights that each step began and ended with."""

    def __init__(self) -> None:
        self.weights: list[dict[str, np.ndarray]] = []

    def on_train_start(self, trainer):
        self._record(trainer)

    def on_train_batch_end(self, trainer, step):
        self._record(trainer)

    def _record(self, trainer):
        self.weights.append(
            {name: weight.double().numpy().copy() for name, weight in trainer.model.state_dict().items()}
        )


def test_the_average_of_the_weights(tiny):
    config, _ = load_config(EXAMPLES / "callback.yaml", tiny("callback")[2:-2])
    recorder = Recorder()
    train(config, run_dir=Path("run"), callbacks=[recorder])
    average = load_state(Path("run/average"))
    for name, tensor in average.items():
        wanted = recorder.weights[0][name]
        for weights in recorder.weights:  # the first time it changes nothing: it is the average's own beginning
            wanted = 0.95 * wanted + 0.05 * weights[name]
        assert np.allclose(tensor.double().numpy(), wanted, rtol=1e-5, atol=1e-8), name  # fp32, rounded 5 times
    assert len(recorder.weights) == 5
    assert minigpt.load("run/average").generate("a", max_new_tokens=2, seed=1).text


@pytest.mark.slow
def test_the_average_is_better_than_the_last_weights(capsys):
    assert main(["train", str(EXAMPLES / "callback.yaml"), "--run-dir", "run", "loggers.console=quiet"]) == 0
    losses = []
    for model in ("model", "average"):
        capsys.readouterr()
        assert main(["eval", f"run/{model}", "--json"]) == 0
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    assert losses[1] < losses[0] - 0.02


# ---- the logger ------------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_evaluation(trained):
    run = trained("logger", EXAMPLES, "loggers.every_steps=1")
    header, rule, *rows = [line.strip("| ").split(" | ") for line in (run / "table.md").read_text().splitlines()]
    assert header == ["step", "tokens", "train/loss", "val/loss", "val/bpb"] and set(rule) == {"---:"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row, step in zip(rows, (2, 4), strict=True):
        known = {key: value for line in lines if line["step"] == step for key, value in line.items()}
        assert row[:2] == [str(step), str(step * 128)]
        assert [float(cell) for cell in row[2:]] == pytest.approx([known[key] for key in header[2:]], rel=1e-3)


def test_a_logger_that_fails_is_left_out(examples, capsys, tiny):
    text = (examples / "logger.py").read_text()
    (examples / "logger.py").write_text(
        text.replace('        self._take_in(metrics)\n        if "val', '        1 / 0\n        if "val')
    )
    assert main([*tiny("logger", examples)[:-3], "loggers.console=plain", "--run-dir", "run"]) == 0
    assert "MarkdownTable is switched off" in "".join(capsys.readouterr()) and Path("run/model").exists()


# ---- the objective ---------------------------------------------------------------------------------------------------

SPECIAL = ["<|endoftext|>", "<|prefix|>", "<|suffix|>", "<|middle|>"]


class Stories(TokenDataset):
    """Documents of 5 to 30 ids, each id once, each document with the end-of-text token behind it."""

    def __init__(self, end: int) -> None:
        draw, ids = random.Random(0), iter(range(1000, 60_000))
        self.ids = np.array([i for _ in range(300) for i in [*(next(ids) for _ in range(draw.randint(5, 30))), end]])
        self.name, self.fingerprint = "stories", ""

    def __len__(self) -> int:
        return len(self.ids)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        return self.ids[start:stop]


def objective(rate: float, length: int = 64):
    tokenizer = train_bpe(["some text to train on"] * 10, vocab_size=270, special_tokens=SPECIAL)
    kind = class_of("objective", "FillInTheMiddle")
    given = {
        "train": Stories(tokenizer.eot_id),
        "validation": Stories(tokenizer.eot_id),
        "context_length": length,
        "seed": 1,
    }
    return kind(kind.Config(rate=rate), tokenizer=tokenizer, **given), PretrainObjective(tokenizer=tokenizer, **given)


def window_of(row) -> list[int]:
    assert row["ids"].dtype == row["targets"].dtype == np.int64 and len(row["ids"]) == len(row["targets"])
    assert (row["ids"][1:] == row["targets"][:-1]).all()
    return [*row["ids"].tolist(), int(row["targets"][-1])]


def split(ids: list[int], end: int) -> list[list[int]]:
    """The documents of a window, without their ends."""
    found: list[list[int]] = [[]]
    for i in ids:
        found.append([]) if i == end else found[-1].append(i)
    return found


def test_rearranged_documents_hold_what_they_held():
    made, plain = objective(0.5)
    prefix, suffix, middle, end = *(made.tokenizer.special_tokens[mark] for mark in SPECIAL[1:]), made.tokenizer.eot_id
    changed = whole = 0
    for index in [*range(60), made.rows_per_epoch + 3]:
        ids, before = window_of(made.row(index)), window_of(plain.row(index))
        assert len(ids) == 65
        pairs = list(zip(split(ids, end), split(before, end), strict=False))
        for found, document in pairs[:-1]:  # the last one may be cut off
            whole += 1
            if found != document:
                changed += 1
                assert [found.count(mark) for mark in (prefix, suffix, middle)] == [1, 1, 1] and found[0] == prefix
                s, m = found.index(suffix), found.index(middle)
                assert found[1:s] + found[m + 1 :] + found[s + 1 : m] == document
        last, document = pairs[-1]
        assert set(last) <= {*document, prefix, suffix, middle}
    assert 0.4 < changed / whole < 0.6  # 0.5 of about 170: four standard deviations


def test_a_row_follows_from_its_index():
    made, _ = objective(1.0)
    again, _ = objective(1.0)
    rows = [window_of(made.row(i)) for i in (0, 7, 7, 200)]
    assert rows[1] == rows[2] and rows == [window_of(again.row(i)) for i in (0, 7, 7, 200)]


def test_at_rate_0_and_in_validation_nothing_is_rearranged():
    made, plain = objective(0.0)
    assert all(window_of(made.row(i)) == window_of(plain.row(i)) for i in range(50))
    made, _ = objective(1.0)
    assert made.validation_rows == plain.validation_rows > 0
    assert all(
        window_of(made.validation_row(i)) == window_of(plain.validation_row(i)) for i in range(made.validation_rows)
    )


def test_a_tokenizer_without_the_marks(refused, tiny):
    said = refused(*tiny("objective"), "tokenizer.special_tokens=[<|endoftext|>]")
    assert "<|prefix|>" in said and "tokenizer.special_tokens" in said
    kind = class_of("objective", "FillInTheMiddle")
    with pytest.raises(RequestError, match="use bpe"):
        kind(kind.Config(), tokenizer=CharTokenizer.from_texts(["abc"]), train=Stories(0), validation=None,
             context_length=8, seed=0)  # fmt: skip


# ---- the source ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
def test_the_sums_are_right(reverse):
    kind = class_of("source", "Sums")
    sums = list(kind(kind.Config(documents=500, digits=3, reverse=reverse)).documents())
    assert len(sums) == 500 and len(set(sums)) > 450
    for line in sums:
        problem, answer = line.removesuffix("\n").split("=")
        a, b = map(int, problem.split("+"))
        assert int(answer[::-1] if reverse else answer) == a + b and max(a, b) < 1000
    assert sums == list(kind(kind.Config(documents=500, digits=3, reverse=reverse)).documents())
    assert sums != list(kind(kind.Config(documents=500, digits=3, reverse=reverse, seed=1)).documents())


def test_other_options_are_other_text(trained, tiny):
    run = trained("source")
    assert (
        main([*tiny("source"), "data.train={kind: " + f"{EXAMPLES}/source.py:Sums, digits: 3" + "}"]) == 0
    )  # finished
    config, _ = load_config(run / "config.yaml")
    assert config.data.train[0].options == {"documents": 10_000, "digits": 2, "reverse": True, "seed": 0}


def test_measuring_on_a_runs_own_text_asks_before_it_runs_the_source(refused, capsys, trained):
    run = trained("source")
    said = refused("eval", run)
    assert f"the text of {run}/config.yaml" in said and f"{EXAMPLES}/source.py" in said and "--trust-code" in said
    assert main(["eval", str(run), "--trust-code"]) == 0


# ---- the part of the network -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1, 2, 3])
def test_the_layer_by_hand(power):
    kind = class_of("model_part", "PowerReGLU")
    config = minigpt.ModelConfig(n_embd=8, n_head=2, n_inner=12, bias=True)
    layer = kind(kind.Config(power=power), model=config).eval()
    x = torch.randn(2, 3, 8)
    gate, up, down = ({name: p.detach().double().numpy() for name, p in part.named_parameters()}
                      for part in (layer.gate, layer.up, layer.down))  # fmt: skip
    a = x.double().numpy()
    inner = np.maximum(a @ gate["weight"].T + gate["bias"], 0) ** power * (a @ up["weight"].T + up["bias"])
    wanted = inner @ down["weight"].T + down["bias"]
    assert np.allclose(layer(x).detach().numpy(), wanted, rtol=1e-4, atol=1e-6)


def test_its_parameters_are_counted():
    config, _ = load_config(EXAMPLES / "model_part.yaml", ["model.vocab_size=50", "model.bias=true"])
    model = minigpt.GPT(config.model)
    assert count_parameters(config.model) == sum(p.numel() for p in model.parameters()) == model.num_parameters()
    assert (model.blocks[0].mlp.gate.weight.std() - 0.02).abs() < 0.002  # drawn like all others
    assert (model.blocks[0].mlp.down.weight.std() - 0.01).abs() < 0.001  # 0.02 / sqrt(2 * 2 blocks)
    assert (model.blocks[0].mlp.gate.bias == 0).all()


def test_the_model_brings_its_code_along_and_asks_before_it_runs_it(examples, refused, monkeypatch, capsys, trained):
    run = trained("model_part", examples)
    shutil.copytree(run / "model", "given-away")
    shutil.rmtree(run), shutil.rmtree(examples)
    said = refused("generate", "given-away", "--prompt", "a")
    assert "given-away/model_part.py" in said and "--trust-code" in said
    for command in (["eval", "given-away", "--data", "x.txt"], ["perplexity", "given-away", "x.txt"]):
        assert "--trust-code" in refused(*command)
    with pytest.raises(RequestError, match="trust_code=True"):
        minigpt.load("given-away")
    monkeypatch.setenv("MINIGPT_TRUST_CODE", "0")
    with pytest.raises(RequestError, match="trust_code=True"):
        minigpt.load("given-away")
    wanted = minigpt.load("given-away", trust_code=True).generate("a", max_new_tokens=5, seed=1).text
    capsys.readouterr()
    assert (
        main(["generate", "given-away", "--prompt", "a", "--max-new-tokens", "5", "--seed", "1", "--trust-code"]) == 0
    )
    assert capsys.readouterr().out == wanted + "\n"
    monkeypatch.setenv("MINIGPT_TRUST_CODE", "1")
    assert minigpt.load("given-away").generate("a", max_new_tokens=5, seed=1).text == wanted
    with pytest.raises(RequestError, match="trust_code=True"):
        minigpt.load("given-away", trust_code=False)


def test_a_model_whose_code_was_changed_is_damaged(refused, trained):
    run = trained("model_part")
    with open(run / "model" / "model_part.py", "a") as file:
        file.write("# changed\n")
    shutil.rmtree(run / "checkpoints")
    assert "model_part.py" in refused("generate", run, "--trust-code", status=1)


def test_cached_generation_is_what_the_whole_network_says(trained):
    run = trained("model_part")
    loaded = minigpt.load(run, trust_code=True)
    made = loaded.generate("Tom", max_new_tokens=8, temperature=0)
    ids = loaded.encode("Tom")
    for token in made.ids:
        assert int(loaded.model(torch.tensor([ids]))[0, -1].argmax()) == token
        ids.append(token)


def test_another_run_can_begin_with_its_weights(examples, refused, trained, tiny):
    trained("model_part", examples)
    more = ["model.init_from=run", "training.max_steps=2"]
    assert main([*tiny("model_part", examples, "next"), *more]) == 0
    assert "another network" in refused(*tiny("model_part", examples, "third"), *more, "model.mlp.power=1")


# ---- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key"), [("callback", "callbacks.own"), ("objective", "objective"), ("model_part", "model.mlp")]
)
def test_a_changed_file_is_another_run(examples, refused, name, key, trained, tiny):
    trained(name, examples)
    with open(examples / f"{name}.py", "a") as file:
        file.write("\n# changed\n")
    said = refused(*tiny(name, examples))
    assert f"of {key} has changed since" in said and "another config" in said
    assert "is not the file that the config was recorded with" in refused(
        "train", "run/config.yaml", "--run-dir", "new"
    )
    assert not Path("new").exists()


def test_a_moved_file_is_the_same_run(examples, capsys, trained, tiny):
    run = trained("callback", examples)
    examples.rename("elsewhere")
    capsys.readouterr()
    assert main(tiny("callback", Path("elsewhere"))) == 0
    assert "is finished" in capsys.readouterr().err and run.exists()


def test_another_option_is_another_run(examples, refused, trained, tiny):
    trained("callback", examples)
    kind = f"{examples}/callback.py:WeightAverage"
    said = refused(*tiny("callback", examples), f"callbacks.own=[{{kind: {kind}, decay: 0.9}}]")
    assert "callbacks.own was" in said and "0.95" in said and "0.9}" in said


def test_a_logger_may_change(examples, capsys, trained, tiny):
    trained("logger", examples)
    with open(examples / "logger.py", "a") as file:
        file.write("\n# changed\n")
    assert main(tiny("logger", examples)) == 0 and "is finished" in capsys.readouterr().err
