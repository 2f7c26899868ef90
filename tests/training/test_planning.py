"""What is planned against what is counted: real tensors of the same step, PyTorch's FLOP counter, brute force."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minigpt.config import RequestError, load_config
from minigpt.model import GPT
from minigpt.model.count import count_parameters
from minigpt.optim import make_optimizer, parameter_groups
from minigpt.training import dry_run
from minigpt.training.planning import advice, rows
from minigpt.training.planning.live import Storages
from minigpt.training.planning.memory import Memory, estimate, simulate
from minigpt.training.planning.mesh import share
from minigpt.training.planning.plan import plan, with_vocabulary
from minigpt.training.planning.rows import ALONE, largest_rows, memory_on

SIZES = {"model__vocab_size": 512, "model__n_layer": 2, "model__context_length": 64, "training__batch_tokens": 256}


def settings(kit, **changes):
    return kit.config(**SIZES | changes)


def peak_of_a_real_step(config, rows):
    """The most bytes of tensors alive in the second of two real steps, by the same books."""
    torch.manual_seed(0)
    model = GPT(config.model).train()
    model.set_checkpointing(config.training.activation_checkpointing)
    optimizer = make_optimizer(parameter_groups(model.named_parameters(), 0.1), config.optimizer)
    ids = torch.randint(0, config.model.vocab_size, (rows, config.model.context_length))
    bf16 = config.training.precision == "bf16"
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(1.0)
    if config.batch_rows == rows:
        optimizer.zero_grad()
    with Storages() as books:
        for tensor in [*model.parameters(), *model.buffers(), *optimizer.tensors().values()]:
            books.number(tensor)
        for parameter in model.parameters():
            if parameter.grad is not None:
                books.number(parameter.grad)
        inputs, targets = ids.clone(), ids.clone()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(inputs, targets=targets)
        (loss * 1.0).backward()
        loss = None
        optimizer.step(1.0)
    return sum(books.peak(lambda number: "all").values())


MIXTURE = {"n_expert": 4, "n_expert_used": 2, "n_inner": 32}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training__micro_batch": 4, "model__dropout": 0.0, "training__precision": "bf16"},
        {"model__moe": MIXTURE, "training__activation_checkpointing": "full", "model__dropout": 0.0},
    ],
    ids=["fp32", "bf16", "experts"],
)
def test_fake_tensors_take_what_real_ones_do(kit, changes):
    config = settings(kit, **changes)
    size = config.training.micro_batch
    planned = sum(simulate(config, "cpu", size).values())
    assert planned == pytest.approx(peak_of_a_real_step(config, size), rel=0.01)


def test_the_parts_are_what_they_are_called(kit):
    config = settings(kit)
    parameters = count_parameters(config.model)
    memory = estimate(config, "cpu")
    assert memory.weights == memory.gradients == 4 * parameters  # two micro-batches: the first one's gradients are kept
    assert memory.optimizer == pytest.approx(8 * parameters, rel=0.01)
    assert 0 < memory.copies < memory.weights + memory.optimizer and memory.gaps > 0
    assert memory.process > 50e6 and memory.total == sum(memory.as_dict().values())
    assert estimate(config, "cuda").copies == 0


def test_checkpointing_keeps_less(kit):
    def activations(level):
        config = settings(kit, model__n_layer=3, training__activation_checkpointing=level, model__dropout=0.0)
        return simulate(config, "cuda", 4)["activations"]

    assert activations("full") < activations("selective") < activations("none")


def test_flops_are_those_of_a_counter(kit):
    config = settings(kit, model__dropout=0.0, model__tie_embeddings=False)
    made = plan(config)
    model, length = GPT(config.model), config.model.context_length
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, length, dtype=torch.int64))
    vectors = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 1)
    # PaLM's N is all parameters: the vectors of norms count as if they were matrices
    assert counter.get_total_flops() == length * (made.forward_flops_per_token - 2 * vectors)
    assert made.flops_per_token == 3 * made.forward_flops_per_token


def test_vocabularies_that_need_no_text():
    for kind, size in (("gpt2", 50257), ("bpe", 4096), ("tiktoken", 100277)):
        config, _ = load_config({"tokenizer": {"kind": kind}, "training": {"max_steps": 1}})
        assert with_vocabulary(config).model.vocab_size == size


@pytest.mark.parametrize("limit", [0, 100, 101, 250, 399, 400, 5000])
def test_largest_rows_is_the_largest(kit, monkeypatch, limit):
    config = settings(kit, training__batch_tokens=48 * 64, training__micro_batch="auto")
    takes = {size: 100 + 6 * size + size**2 // 40 for size in range(1, 49)}  # nearly linear
    asked = []

    def memory(config, device, sizes=ALONE):
        asked.append(config.training.micro_batch)
        return Memory(activations=takes[config.training.micro_batch])

    monkeypatch.setattr(rows, "memory_on", memory)
    fitting = [size for size in range(1, 49) if 48 % size == 0 and takes[size] <= limit]
    assert largest_rows(config, "cuda", limit) == max(fitting, default=None)
    assert len(asked) == len(set(asked)) <= 6


def test_a_mesh_divides(kit):
    config = settings(kit, training__micro_batch=1)
    whole = Memory(weights=800, gradients=800, optimizer=1600, activations=4000, logits=400, process=7)
    sharded = share(whole, config, ALONE | {"fsdp": 4}, 4)
    assert (sharded.weights, sharded.gradients, sharded.optimizer) == (200, 200, 400)
    assert sharded.activations == 4000 and sharded.communication > 0 and sharded.process == 7
    assert sharded.gaps == sharded.copies == 0  # of which a GPU has none
    tensor = share(whole, config, ALONE | {"tp": 2, "cp": 2}, 4)
    assert (tensor.weights, tensor.activations, tensor.logits) == (400, 1000, 100)
    staged = share(whole, config, ALONE | {"pp": 2}, 4)
    assert (staged.activations, staged.logits) == (4000, 0)  # two micro-batches wait in the first
    parameters = count_parameters(config.model)
    table = parameters - count_parameters(config.model, embeddings=False)  # tied: at both ends
    assert staged.weights == pytest.approx(400 * (1 + table / parameters), abs=1)
    saving = replace(whole, copies=1000, gaps=500)
    spread = share(saving, config, ALONE | {"fsdp": 4}, 4)
    assert spread.copies == 600 + 4 * config.model.padded_vocab_size * config.model.n_embd and spread.gaps > 0
    assert share(saving, config, ALONE | {"cp": 2}, 4).copies == 2400  # one process saves
    assert share(whole, config, ALONE | {"dp": 8}, 1) == whole


def test_processes_on_this_machine_share_it(kit):
    changes = {"training__micro_batch": 1, "training__max_steps": 5, "run__device": "cpu"}
    alone = plan(settings(kit, **changes)).estimates[0]
    two = plan(settings(kit, **changes, distributed__mesh={"fsdp": 2})).estimates[0]
    assert (alone.devices, two.devices) == (1, 2) and two.hardware.endswith("2 processes")
    assert two.memory.optimizer == alone.memory.optimizer // 2
    assert two.limit <= 0.6 * alone.limit
    with pytest.raises(RequestError, match="heads cannot be shared equally by 3 processes"):
        plan(settings(kit, **changes, distributed__mesh={"tp": 3}))


def test_an_average_of_the_weights_counts(kit):
    changes = {"training__micro_batch": 1, "checkpoint__every_steps": None, "checkpoint__every_minutes": None}
    plain = memory_on(settings(kit, **changes), "cuda")
    averaged = memory_on(settings(kit, **changes, optimizer__ema_decay=0.9), "cuda")
    assert averaged.optimizer - plain.optimizer == plain.weights


def test_advice_on_tokens():
    assert advice.on_tokens(10**8, 2 * 10**9).endswith("where about 20 make the most of the arithmetic")
    assert "316M parameters on 6.32G tokens" in advice.on_tokens(10**9, 2 * 10**9)
    assert "train longer" in advice.on_tokens(10**9, 2 * 10**9)
    assert "cheaper to use" in advice.on_tokens(10**8, 10**10)


def test_what_does_not_fit_is_changed_until_it_does(kit, monkeypatch):
    def memory(config, device, sizes=ALONE):
        training = config.training
        shared = sizes["fsdp"] if training.activation_checkpointing == "full" else 1
        kept = 1 if training.activation_checkpointing == "full" else 10
        return Memory(weights=80 // shared, activations=kept * training.micro_batch)

    monkeypatch.setattr(rows, "memory_on", memory)
    monkeypatch.setattr(advice, "memory_on", memory)
    config = settings(kit, training__batch_tokens=1024, training__micro_batch=16, training__precision="bf16")
    full = "training.activation_checkpointing=full"
    assert advice.to_fit(config, "cuda", 170, ALONE) == ["training.micro_batch=8"]
    assert advice.to_fit(config, "cuda", 85, ALONE) == ["training.micro_batch=1", full]
    mesh = "distributed.mesh={fsdp: 4} on 4 devices or more"
    assert advice.to_fit(config, "cuda", 25, ALONE) == ["training.micro_batch=1", full, mesh]
    assert advice.to_fit(config, "cuda", 0, ALONE)[-1] == "a smaller model or model.context_length"


def test_a_dry_run_says_the_same(kit):
    config = kit.config()
    assert dry_run(config).memory_bytes == pytest.approx(memory_on(with_vocabulary(config), "cpu").total, rel=0.02)


@pytest.mark.slow
def test_runs_take_what_was_planned():
    script = Path(__file__).parents[2] / "benchmarks" / "plan_memory.py"
    names = [
        "0.8M, fp32, 64 x 256",
        "unseen: 49M, bf16, latent, experts",
        "5M, fp32, fsdp of 2",
        "24M, fp32, tp of 2",
        "unseen: 15M, fp32, cp of 2",
        "34M, bf16, pp of 2",
    ]
    command = [sys.executable, str(script), "--json", "--only", *names]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == len(names)
    for one in found:
        assert one["planned_mb"] == pytest.approx(one["measured_mb"], rel=0.10), one
