"""`minigpt plan` and `minigpt tune` from the command line: one object, and one sentence for what is wrong."""

import pytest

SMALL = ["gpt2-124m", "model.n_layer=1", "model.n_embd=64", "model.n_head=2", "model.context_length=64",
         "training.batch_tokens=1024", "training.micro_batch=4"]  # fmt: skip


def test_a_plan_for_gpus(run):
    done = run("plan", *SMALL, "--gpus", "H100x2,T4", "--price", "2", "--mfu", "0.5", "--json")
    assert done.status == 0
    made = done.json
    many, one = made["estimates"]
    assert (many["hardware"], many["mesh"]["dp"], one["hardware"]) == ("2 x H100", 2, "T4")
    assert many["seconds"] == pytest.approx(made["tokens"] * made["flops_per_token"] / (2 * 989e12 * 0.5))
    assert many["price"] == pytest.approx(2 * 2 * many["seconds"] / 3600)
    assert made["tokens_per_parameter"] == made["tokens"] / made["parameters"]
    assert many["fits"] and many["memory_bytes"] == sum(many["memory"].values())


def test_a_plan_for_people(run):
    done = run("plan", *SMALL, "--gpus", "H100", "training.max_steps=10")
    assert done.status == 0 and done.out.startswith("parameters ")
    for word in ("arithmetic", "tokens", "cache", "H100: micro-batch 4 (bf16)", "memory", "time", "price"):
        assert word in done.out, word


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "gpt2-124m", "--gpus", "K2000"], "none of the GPUs that are known"),
        (["plan", "gpt2-124m", "--mfu", "2"], "share of the peak"),
        (["plan", "gpt2-124m", "--price", "-1"], "cannot be negative"),
        (["plan", *SMALL, "--gpus", "H100x3", "distributed.mesh={fsdp: 2}"], "processes"),
        (["plan", "shakespeare-char", "data.train=null"], "data.train"),
        (["tune", "batch-size", "demo", "--memory", "much"], "is no size"),
        (["tune", "lr", "demo", "--from", "1", "--to", "0.1"], "no range"),
    ],
)
def test_what_is_wrong_is_one_sentence(run, words, said):
    done = run(*words)
    assert done.status == 2 and said in done.complaint
