"""One process's share of the memory of training, on a mesh of several."""

from dataclasses import replace

from minigpt.config import Config, ModelConfig
from minigpt.config.mesh import Sizes
from minigpt.model.count import count_parameters
from minigpt.training.planning.memory import Memory

GAPS = {"fsdp": (0.45, 0.45), "tp": (0.8, 0.8), "cp": (0.95, 0.3), "pp": (1.5, 0.3)}
"""On a CPU, what the allocator leaves between blocks, as a share of activations, logits and what is exchanged: buffers
of many sizes leave more of it than one process's tensors do (`memory.GAPS`). The second number is for runs that write
checkpoints meanwhile, whose copies settle in the gaps. Fitted to one or two runs each."""


def share(whole: Memory, config: Config, sizes: Sizes, passes: int) -> Memory:
    """What one process of a mesh takes, given what one that trains alone takes: that of the stage that takes most.

    Matrices and tokens are cut evenly (`parallel/`): tp cuts the weights and, between the products, the tokens; cp the
    tokens; pp the blocks, but both ends have a tied table; fsdp the weights, of which a block's and the next one's are
    gathered while it computes. passes: micro-batches that a process makes in a step.
    """
    cut, shards, stages = sizes["tp"], sizes["fsdp"] * (sizes["cp"] if sizes["fsdp"] > 1 else 1), sizes["pp"]
    spread = max(cut, shards, stages) > 1  # then all save together, and the main process puts the model together
    if not spread and sizes["cp"] == 1:
        return whole
    tokens = sizes["tp"] * sizes["cp"]
    part = _heaviest_stage(config.model, stages) / (cut * shards)
    waiting = min(stages, passes) if config.distributed.pipeline == "1f1b" else passes
    first = whole.activations * waiting // (stages * tokens)
    last = (whole.activations // stages + whole.logits) // tokens
    activations, logits = (first, 0) if first > last else (last - whole.logits // tokens, whole.logits // tokens)
    exchanged = _exchanged(config, sizes)
    weights, optimizer = round(whole.weights * part), round(whole.optimizer * part)
    copies = weights + optimizer if whole.copies else 0
    gaps = max(pair[copies > 0] for name, pair in GAPS.items() if sizes[name] > 1)
    largest = 4 * config.model.padded_vocab_size * config.model.n_embd  # the main process reads what others wrote
    return replace(
        whole,
        weights=weights,
        gradients=round(whole.gradients * part),
        optimizer=optimizer,
        copies=copies + (largest if copies and spread else 0),
        gaps=round(gaps * (activations + logits + exchanged)) if whole.gaps else 0,
        activations=activations,
        logits=logits,
        communication=exchanged,
    )


def _heaviest_stage(model: ModelConfig, stages: int) -> float:
    """The share of the parameters that the first or the last stage has: its blocks, and a table."""
    whole, network = count_parameters(model), count_parameters(model, embeddings=False)
    if stages == 1:
        return 1.0
    ends = whole - network if model.tie_embeddings else (whole - network) / 2
    return (network / stages + ends) / whole


def _exchanged(config: Config, sizes: Sizes) -> int:
    """Bytes that are there besides, because processes exchange them."""
    model, rows = config.model, config.training.micro_batch
    assert isinstance(rows, int)
    width = 4 if config.training.precision == "fp32" else 2
    sublayer = width * rows * model.context_length // sizes["cp"] * model.n_embd  # what its products read
    kept = model.n_layer if config.training.activation_checkpointing != "full" else 1
    found = 0
    if sizes["tp"] > 1:  # the tokens that each sub-layer gathers, and what it makes of them
        found += sublayer * (2 * kept * (sizes["tp"] - 1) // sizes["tp"] + 2) // sizes["pp"]
    if sizes["cp"] > 1:  # what attention made, by heads and by tokens; queries, keys and values on their way
        found += sublayer * (kept + 8) // (sizes["pp"] * sizes["tp"])
    if sizes["fsdp"] > 1:
        found += _gathered(config) // (sizes["tp"] * sizes["pp"])
    return found


def _gathered(config: Config) -> int:
    """Bytes of weights and gradients that FSDP has in whole: the tables', and those of two blocks (or of all)."""
    model, width = config.model, 2 if config.distributed.gather == "bf16" else 4
    network = count_parameters(model, embeddings=False)
    tables = 2 * 4 * (count_parameters(model) - network)
    block = network // model.n_layer
    kept = network if not config.distributed.reshard else 2 * block
    return tables + width * kept + 4 * block
