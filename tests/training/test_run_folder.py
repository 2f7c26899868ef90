"""What `--resume` does with a folder: fresh, go on, finished, refused; what becomes of damaged or foreign things."""

import json
import shutil

import pytest

from minigpt.config import RequestError, WorkError
from minigpt.storage import list_checkpoints, lock_folder
from minigpt.training import Callback


class StopAt(Callback):
    """Asks for a stop when a step begins: the run is saved as it was after the step before."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, step):
        if step == self.step:
            trainer.signals.request()


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def stopped(tmp_path, kit):
    """A run that was stopped after step 4 (checkpoints of steps 2, 3 and 4)."""
    kit.train(kit.config(), tmp_path / "run", callbacks=[StopAt(5)])
    return tmp_path / "run"


@pytest.fixture
def expected(tmp_path, kit):
    kit.train(kit.config(), tmp_path / "whole")
    return kit.outcome(tmp_path / "whole")


def without_callback(found):
    found["state"]["trainer"]["callbacks"].pop("StopAt", None)
    return found


def test_a_fresh_folder_has_the_layout_of_a_run(tmp_path, kit):
    console = kit.Console()
    result = kit.train(kit.config(), tmp_path / "run", console=console)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    files = {".lock", "config.yaml", "metrics.jsonl", "samples.jsonl", "environment.jsonl"}
    assert names == files | {"tokenizer", "checkpoints", "model"}
    assert {"last", "best", "step-00000006"} <= {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert (tmp_path / "run" / "checkpoints" / "last").read_text() == "step-00000006\n"
    files = {path.name for path in (tmp_path / "run" / "checkpoints" / "step-00000006").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "optimizer.safetensors", "trainer_state.json",
            "MANIFEST.json"} <= files  # fmt: skip
    assert not {"optimizer.safetensors", "trainer_state.json"} & {p.name for p in (tmp_path / "run/model").iterdir()}
    assert result.exit_status == 0 and "6 steps" in result.message


def test_an_unfinished_run_goes_on_and_a_finished_one_says_so(kit, stopped, expected):
    console = kit.Console()
    assert kit.train(kit.config(), stopped, console=console).exit_status == 0
    assert "going on from step 4 of 6" in console.lines[0]
    assert without_callback(kit.outcome(stopped)) == expected
    before = content(stopped)
    result = kit.train(kit.config(), stopped)
    assert result.exit_status == 0 and "is finished" in result.message
    assert content(stopped) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optimizer__lr": 0.5}, "optimizer.lr was 0.01 and is now 0.5"),
        ({"run__seed": 9}, "run.seed was 1 and is now 9"),
        ({"training__max_steps": 9}, "training.max_steps was 6 and is now 9"),
        ({"training__micro_batch": 4}, "training.micro_batch was 2 and is now 4"),
        ({"training__precision": "bf16"}, "training.precision"),
        ({"model__dropout": 0.2}, "model.dropout was 0.1 and is now 0.2"),
        ({"model__n_embd": 64}, "model.n_embd"),
        ({"model__tie_embeddings": False}, "model.tie_embeddings was true and is now false"),
        ({"model__init_residual": "zero"}, "model.init_residual was scaled and is now zero"),
        ({"model__moe": {"n_expert": 2}}, "model.moe.n_expert was 0 and is now 2"),
        ({"schedule__kind": "linear"}, "schedule.kind was cosine and is now linear"),
        ({"run__threads": 2}, "run.threads"),
        ({"training__overfit_batches": 1}, "training.overfit_batches"),
        ({"data__val_fraction": 0.2}, "data.val_fraction was 0.1 and is now 0.2"),
        ({"tokenizer": {"kind": "bpe", "vocab_size": 300}}, "tokenizer.kind was char and is now bpe"),
        ({"optimizer__lr": 0.5, "run__seed": 9}, "run.seed was 1 and is now 9, optimizer.lr"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_a_key_that_shapes_the_trajectory_is_named(tmp_path, kit, stopped, changes, named, finished):
    if finished:
        kit.train(kit.config(), stopped)
    before = content(stopped)
    with pytest.raises(RequestError) as caught:
        kit.train(kit.config(**changes), stopped)
    assert named in str(caught.value) and "\n" not in str(caught.value)
    assert content(stopped) == before


def test_what_only_looks_at_the_run_may_change(tmp_path, kit, stopped, expected):
    changes = {
        "run__name": "other", "loggers__every_steps": 2, "evaluation": {"every_steps": 2, "max_tokens": 32},
        "checkpoint": {"every_steps": 1, "keep_last": 3, "background": False}, "callbacks": {},
    }  # fmt: skip
    kit.train(kit.config(**changes), stopped)
    assert kit.outcome(stopped)["files"] == expected["files"]


def test_the_same_text_elsewhere_goes_on_but_another_text_is_refused(tmp_path, kit):
    (tmp_path / "a.txt").write_text(kit.text())
    (tmp_path / "b.txt").write_text(kit.text())
    (tmp_path / "c.txt").write_text(kit.text(seed=1))
    run = tmp_path / "run"
    kit.train(kit.config(data__train=str(tmp_path / "a.txt")), run, callbacks=[StopAt(5)])
    before = content(run)
    with pytest.raises(RequestError, match=r"text of data\.train or data\.val is not what the run in .* was"):
        kit.train(kit.config(data__train=str(tmp_path / "c.txt")), run)
    assert content(run) == before
    assert kit.train(kit.config(data__train=str(tmp_path / "b.txt")), run).exit_status == 0


def test_the_run_goes_on_with_its_own_tokenizer(tmp_path, kit, expected):
    """The tokenizer file that the config names may be gone or another by now: the run has a copy."""
    kit.train(kit.config(), tmp_path / "first")
    shutil.copytree(tmp_path / "first" / "tokenizer", tmp_path / "tokenizer")
    settings = kit.config(tokenizer={"kind": "file", "path": str(tmp_path / "tokenizer")})
    kit.train(settings, tmp_path / "run", callbacks=[StopAt(5)])
    shutil.rmtree(tmp_path / "tokenizer")
    kit.train(settings, tmp_path / "run")
    assert without_callback(kit.outcome(tmp_path / "run"))["files"] == expected["files"]


def test_never_refuses_a_used_folder(tmp_path, kit, stopped):
    before = content(stopped)
    with pytest.raises(RequestError, match="is in use already"):
        kit.train(kit.config(), stopped, resume="never")
    assert content(stopped) == before
    assert kit.train(kit.config(), tmp_path / "new", resume="never").exit_status == 0


def test_a_path_starts_a_new_run_from_that_state(tmp_path, kit, expected):
    """With the same config its steps are those of the original, and so are all bytes at the end."""
    kit.train(kit.config(checkpoint__keep_last=9), tmp_path / "run")
    for origin in ("checkpoints/step-00000002", "checkpoints/step-00000004"):
        step = int(origin[-1])
        new = tmp_path / f"from-{step}"
        kit.train(kit.config(), new, resume=str(tmp_path / "run" / origin))
        found = kit.outcome(new)
        assert found["files"] == expected["files"] and found["state"] == expected["state"]
        assert found["metrics"] == [line for line in expected["metrics"] if line["step"] > step]
        with pytest.raises(RequestError, match="has a run already"):
            kit.train(kit.config(), new, resume=str(tmp_path / "run" / origin))
        assert "is finished" in kit.train(kit.config(), new).message


def test_a_run_folder_as_path_means_its_newest_checkpoint(tmp_path, kit, stopped, expected):
    kit.train(kit.config(), tmp_path / "new", resume=str(stopped))
    assert without_callback(kit.outcome(tmp_path / "new"))["files"] == expected["files"]


@pytest.mark.slow
def test_a_path_may_be_continued_with_another_config_and_be_killed(tmp_path, kit, chaos, killed, stopped):
    settings = kit.config(optimizer__lr=1e-3, training__max_steps=8)
    kit.train(settings, tmp_path / "whole", resume=str(stopped))
    wanted = without_callback(kit.outcome(tmp_path / "whole"))
    chaos.reset()
    kit.train(settings, tmp_path / "again", resume=str(stopped))
    for at in range(0, len(chaos.moments), 17):
        run = tmp_path / f"{at}"
        chaos.reset(at)
        with pytest.raises(killed):
            kit.train(settings, run, resume=str(stopped))
        chaos.reset()
        kit.train(settings, run, resume="auto" if (run / "config.yaml").exists() else str(stopped))
        assert without_callback(kit.outcome(run)) == wanted, at


def test_a_path_of_another_network_or_beyond_the_end_leaves_nothing_behind(tmp_path, kit, stopped):
    for changes, said in (({"model__n_embd": 64}, "another network"), ({"training__max_steps": 4}, "raise it")):
        with pytest.raises(RequestError, match=said):
            kit.train(kit.config(**changes), tmp_path / "new", resume=str(stopped))
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__moe": {"n_expert": 4}}, "model.moe.n_expert=4 is 0 there"),
        ({"model__rope_scaling": {"kind": "linear", "factor": 2.0}}, "model.rope_scaling.kind=linear is none there"),
        ({"model__attention_window": 2}, "model.attention_window=[2] is [null] there"),
        ({"model__n_layer": 2}, "model.n_layer=2 is 1 there"),
        ({"model__logit_softcap": 5.0}, "model.logit_softcap=5.0 is null there"),
    ],
)
def test_beginning_from_another_network_says_where_they_part_and_leaves_nothing_behind(tmp_path, kit, changes, said):
    kit.train(kit.config(training__max_steps=1), tmp_path / "first")
    settings = kit.config(model__init_from=str(tmp_path / "first"), tokenizer={}, **changes)
    with pytest.raises(RequestError) as caught:
        kit.train(settings, tmp_path / "new")
    assert str(caught.value).endswith(f"is another network: {said}") and not (tmp_path / "new").exists()


@pytest.mark.parametrize("path", ["nothing", "empty", "file.txt", "run/model"])
def test_a_path_that_is_no_checkpoint(tmp_path, kit, path):
    kit.train(kit.config(), tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises((RequestError, WorkError)) as caught:
        kit.train(kit.config(), tmp_path / "new", resume=str(tmp_path / path))
    assert path in str(caught.value) and not (tmp_path / "new").exists()


def test_a_pointer_as_path(tmp_path, kit, stopped, expected):
    kit.train(kit.config(), tmp_path / "new", resume=str(stopped / "checkpoints" / "last"))
    assert without_callback(kit.outcome(tmp_path / "new"))["files"] == expected["files"]


def test_a_locked_folder_is_refused_at_once(kit, stopped):
    before = content(stopped)
    with lock_folder(stopped), pytest.raises(RequestError, match=r"is in use by process \d+"):
        kit.train(kit.config(), stopped)
    assert {k: v for k, v in content(stopped).items() if k.name != ".lock"} == {
        k: v for k, v in before.items() if k.name != ".lock"
    }


def test_a_file_in_the_place_of_the_folder(tmp_path, kit):
    (tmp_path / "run").write_text("precious")
    with pytest.raises(RequestError, match=r"run folder .* cannot be used"):
        kit.train(kit.config(), tmp_path / "run")
    assert (tmp_path / "run").read_text() == "precious"


def test_a_request_that_fails_leaves_no_folder(tmp_path, kit):
    for settings in (kit.config(data__train=str(tmp_path / "missing.txt")), kit.config(data__train={"text": "short"})):
        with pytest.raises(RequestError):
            kit.train(settings, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_tokenizer_left_by_a_start_that_failed_is_not_taken_over(tmp_path, kit, chaos, killed):
    """Killed after the tokenizer was written and before the config: the next start may want another tokenizer."""
    kit.train(kit.config(), tmp_path / "warm")
    chaos.reset()
    kit.train(kit.config(), tmp_path / "x")
    at = next(i for i, m in enumerate(chaos.moments) if m == "before replace_file")  # the config's atomic write
    chaos.reset(at)
    with pytest.raises(killed):
        kit.train(kit.config(), tmp_path / "run")
    chaos.reset()
    assert (tmp_path / "run" / "tokenizer").exists() and not (tmp_path / "run" / "config.yaml").exists()
    other = kit.config(tokenizer={"kind": "bpe", "vocab_size": 300})
    kit.train(other, tmp_path / "run")
    kit.train(other, tmp_path / "clean")
    assert kit.outcome(tmp_path / "run") == kit.outcome(tmp_path / "clean")
    for name in ("tokenizer.json",):
        assert (tmp_path / "run/tokenizer" / name).read_bytes() == (tmp_path / "clean/tokenizer" / name).read_bytes()


def test_killed_before_the_first_checkpoint_it_starts_over_with_the_text_as_it_is_by_now(tmp_path, kit, chaos, killed):
    (tmp_path / "a.txt").write_text(kit.text())
    settings = kit.config(data__train=str(tmp_path / "a.txt"))
    kit.train(settings, tmp_path / "warm")
    chaos.reset()
    kit.train(settings, tmp_path / "again")
    chaos.reset(chaos.moments.index("after log"))
    with pytest.raises(killed):
        kit.train(settings, tmp_path / "run")
    chaos.reset()
    (tmp_path / "a.txt").write_text(kit.text().replace("b", "z"))  # as many characters, but others
    kit.train(settings, tmp_path / "run")
    kit.train(settings, tmp_path / "fresh")
    assert kit.outcome(tmp_path / "run") == kit.outcome(tmp_path / "fresh")
    assert content(tmp_path / "run" / "tokenizer") == content(tmp_path / "fresh" / "tokenizer")


FILES = ("MANIFEST.json", "config.json", "model.safetensors", "optimizer.safetensors", "tokenizer.json",
         "trainer_state.json")  # fmt: skip


@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(kit, stopped, expected, name, how):
    file = stopped / "checkpoints" / "step-00000004" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data if how == "flipped" else data[: len(data) // 2])
    if how == "missing":
        file.unlink()
    console = kit.Console()
    kit.train(kit.config(), stopped, console=console)
    (line,) = [line for line in console.lines if "is damaged" in line]
    assert "step-00000004 is damaged" in line and name in line and "going on from step-00000003" in line
    assert without_callback(kit.outcome(stopped)) == expected
    assert (stopped / "checkpoints" / "damaged-step-00000004").is_dir()


def test_no_good_checkpoint_left_is_no_fresh_start(kit, stopped):
    for folder in list_checkpoints(stopped):
        (folder / "model.safetensors").write_bytes(b"")
    before = content(stopped)
    with pytest.raises(WorkError, match="has no usable checkpoint left"):
        kit.train(kit.config(), stopped)
    assert {k: v for k, v in content(stopped).items() if k.name != ".lock"} == {
        k: v for k, v in before.items() if k.name != ".lock"
    }


@pytest.mark.parametrize("what", ["tokenizer", "model"])
def test_other_damage_is_named(kit, stopped, what):
    if what == "model":
        kit.train(kit.config(), stopped)
    file = stopped / what / ("tokenizer.json" if what == "tokenizer" else "model.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(WorkError, match=f"{file.name} has .* bytes instead of"):
        kit.train(kit.config(), stopped)


def test_a_config_that_is_gone(kit, stopped):
    (stopped / "config.yaml").unlink()
    with pytest.raises(RequestError, match=r"has checkpoints but no config\.yaml"):
        kit.train(kit.config(), stopped)


def test_a_log_that_somebody_cut_is_not_filled_with_zeros(kit, stopped):
    (stopped / "metrics.jsonl").write_text("")
    kit.train(kit.config(), stopped)
    assert [line["step"] for line in kit.metrics(stopped) if "train/loss" in line] == [5, 6]


def test_the_saved_config_repeats_the_run(tmp_path, kit, expected):
    from minigpt.config import load_config

    kit.train(kit.config(), tmp_path / "a")
    kit.train(load_config(tmp_path / "a" / "config.yaml")[0], tmp_path / "b")
    assert kit.outcome(tmp_path / "b") == expected
    assert json.loads((tmp_path / "b/checkpoints/step-00000006/trainer_state.json").read_text())["step"] == 6
