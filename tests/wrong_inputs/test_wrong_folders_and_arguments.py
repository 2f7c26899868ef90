"""Run folders, models and arguments with which a command cannot work, and disks that are full."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import minigpt
from minigpt.storage import list_checkpoints, lock_folder

CASES = {}  # name -> what makes the command line, its exit status, words of the sentence


def case(status, *words):
    def keep(make):
        CASES[make.__name__] = make, status, words
        return make

    return keep


# ---- folders -------------------------------------------------------------------------------------------------------


@case(2, "cannot be used")
def run_folder_is_a_file(w):
    w.put("new", "precious")
    return w.train()


@case(2, "cannot be used")
def run_folder_below_a_file(w):
    w.put("file", "precious")
    return w.train(run="file/new")


@case(2, "in use by process")
def run_folder_locked(w):
    w.held.append(lock_folder(w.folder / "run"))
    return w.train(run="run")


@case(2, "optimizer.lr was 0.001 and is now 0.5")
def run_with_another_config(w):
    return w.train("optimizer.lr=0.5", run="run")


@case(2, "run.seed was 1337 and is now 1")
def finished_run_with_another_config(w):
    return w.train("run.seed=1", run="done")


@case(2, "is not what the run")
def run_with_another_text(w):
    return w.train(run="run", data=w.put("other.txt", (w.folder / "text.txt").read_bytes()[::-1]).name)


@case(2, "is in use already")
def used_folder_that_must_be_new(w):
    return [*w.train(run="run"), "--resume", "never"]


@case(2, "neither auto nor never")
def resume_from_nothing(w):
    return [*w.train(), "--resume", str(w.folder / "nothing")]


@case(2, "model.n_embd is 32 there and 64 here")
def resume_from_another_network(w):
    return [*w.train("model.n_embd=64"), "--resume", str(w.folder / "run")]


@case(2, "has a run already")
def resume_into_a_used_folder(w):
    return [*w.train(run="done"), "--resume", str(w.folder / "run")]


@case(1, "no usable checkpoint left")
def every_checkpoint_damaged(w):
    for folder in list_checkpoints(w.folder / "run"):
        (folder / "model.safetensors").write_bytes(b"x")
    return w.train(run="run")


@case(2, "config.yaml")
def run_whose_config_is_gone(w):
    (w.folder / "run" / "config.yaml").unlink()
    return w.train(run="run")


@case(2, "config.yaml", "YAML")
def run_whose_config_is_damaged(w):
    w.put("run/config.yaml", "run: {")
    return w.train(run="run")


@case(1, "skipped.jsonl is damaged in line 1")
def run_whose_journal_is_damaged(w):
    w.put("run/skipped.jsonl", "{")
    return w.train(run="run")


@case(1, "tokenizer.json")
def run_whose_tokenizer_is_damaged(w):
    w.put("run/tokenizer/tokenizer.json", "{}")
    return w.train(run="run")


@case(1, "model.safetensors")
def finished_run_whose_model_is_damaged(w):
    w.put("done/model/model.safetensors", "{}")
    return w.train(run="done")


@case(2, "MINIGPT_CACHE")
def cache_that_is_a_file(w):
    w.patch.setenv("MINIGPT_CACHE", str(w.put("cache", "precious")))
    return w.train()


@case(1, "no space left on device", "step-00000002 is kept")
def disk_full_in_a_later_checkpoint(w):
    w.fill_disk("step-00000004")
    return w.train(run="run")


# ---- models and arguments ------------------------------------------------------------------------------------------


@case(2, "does not exist")
def model_missing(w):
    return ["generate", str(w.folder / "nothing"), "--prompt", "a"]


@case(2, "it is empty")
def model_folder_empty(w):
    (w.folder / "empty").mkdir()
    return ["generate", str(w.folder / "empty"), "--prompt", "a"]


@case(2, "bert", "it reads gpt2, llama")
def model_of_another_kind(w):
    w.put("hf/config.json", json.dumps({"model_type": "bert"}))
    w.put("hf/model.safetensors", "x")
    return ["generate", str(w.folder / "hf"), "--prompt", "a"]


@case(1, "hf", "model.safetensors is not a whole safetensors file")
def model_of_hugging_face_damaged(w):
    w.put("hf/config.json", json.dumps({"model_type": "gpt2"}))
    w.put("hf/model.safetensors", "x")
    return ["generate", str(w.folder / "hf"), "--prompt", "a"]


@case(2, "pytorch_model.bin")
def model_of_hugging_face_without_weights(w):
    w.put("hf/config.json", json.dumps({"model_type": "gpt2"}))
    return ["import", str(w.folder / "hf"), str(w.folder / "out")]


@case(2, "LlamaForCausalLM", "hidden_act='tanh'", "silu")
def model_of_hugging_face_with_an_option_that_we_have_not(w):
    w.put("hf/config.json", json.dumps({"model_type": "llama", "hidden_act": "tanh"}))
    w.put("hf/model.safetensors", "x")
    return ["generate", str(w.folder / "hf"), "--prompt", "a"]


@case(1, "model.safetensors")
def model_damaged(w):
    w.put("done/model/model.safetensors", "x")
    shutil.rmtree(w.folder / "done/checkpoints")
    return ["generate", str(w.folder / "done"), "--prompt", "a"]


@case(2, "U+00A7")
def prompt_with_an_unknown_character(w):
    return ["generate", str(w.folder / "done"), "--prompt", "\u00a7"]


@case(2, "temperature")
def temperature_below_zero(w):
    return ["generate", str(w.folder / "done"), "--prompt", "a", "--temperature", "-1"]


@case(2, "missing.txt")
def evaluation_of_a_missing_file(w):
    return ["eval", str(w.folder / "done"), "--task", "loss", "--data", str(w.folder / "missing.txt")]


@case(2, "trian")
def command_unknown(w):
    return ["trian"]


@case(2, "--no-wandbb")
def option_unknown(w):
    return [*w.train(), "--no-wandbb"]


@case(2, "CONFIG")
def argument_missing(w):
    return ["train"]


@pytest.mark.parametrize("name", CASES)
def test_one_sentence_the_right_status_and_nothing_lost(refused, name):
    refused(*CASES[name])


# ---- through a process ---------------------------------------------------------------------------------------------

LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from minigpt.cli import main
from minigpt import training
from minigpt.storage import fs
make = fs.make_folder
def limit(path):  # from the second checkpoint on, no file may grow beyond 30 kB: smaller than the weights
    if "step-00000004" in str(path):
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    make(path)
fs.make_folder = limit
sys.exit(main(sys.argv[1:]))
"""


def command(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    start = ["-c", code] if code else ["-m", "minigpt"]
    environment = os.environ | {"PYTHONPATH": str(Path(minigpt.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *start, *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.skipif(sys.platform != "linux", reason="the size limit of files is set as on Linux")
@pytest.mark.slow
def test_a_disk_that_really_refuses_to_write(world, one_sentence):
    """The system ends a write in the middle (EFBIG, as ENOSPC would): the run stops, and goes on when there is room."""
    before = world.content("run/checkpoints")
    done = command(*world.train(run="run"), code=LIMITED)
    assert done.returncode == 1
    one_sentence(done.stderr, ("file too large", "step-00000002 is kept"))
    assert world.content("run/checkpoints") == before
    done = command(*world.train(run="run"))
    assert done.returncode == 0, done.stderr
    finished = [(world.folder / name / "model" / "model.safetensors").read_bytes() for name in ("run", "done")]
    assert finished[0] == finished[1]


def test_through_the_command(world, one_sentence):
    done = command(*world.train(data="missing.txt"))
    assert done.returncode == 2 and done.stdout == ""
    one_sentence(done.stderr, ("missing.txt",))
