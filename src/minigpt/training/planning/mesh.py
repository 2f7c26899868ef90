"""One process's share of the memory of training, on a mesh of several."""

from dataclasses import replace

from minigpt.config import Config
from minigpt.config.mesh import Sizes
from minigpt.model.count import count_parameters
from minigpt.training.planning.memory import Memory


def share(whole: Memory, config: Config, sizes: Sizes, passes: int) -> Memory:
    """What one process of a mesh takes, given what one that trains alone takes: that of the stage that takes most.

    Matrices and tokens are cut evenly (`parallel/`): tp cuts the weights and, between the products, the tokens; cp the
    tokens; pp the blocks; fsdp the weights, of which a block's and the next one's are gathered while it computes.
    passes: micro-batches that a process makes in a step.
    """
    cut, shards, stages = sizes["tp"], sizes["fsdp"] * (sizes["cp"] if sizes["fsdp"] > 1 else 1), sizes["pp"]
    tokens = sizes["tp"] * sizes["cp"]
    state = cut * shards * stages
    waiting = min(stages, passes) if config.distributed.pipeline == "1f1b" else passes
    first = whole.activations * waiting // (stages * tokens)
    last = (whole.activations // stages + whole.logits) // tokens
    activations, logits = (first, 0) if first > last else (last - whole.logits // tokens, whole.logits // tokens)
    exchanged = 0
    if sizes["fsdp"] > 1:
        exchanged = _gathered(config) // (cut * stages)
    elif sizes["tp"] > 1:  # the tokens of one sub-layer, gathered
        rows = config.training.micro_batch
        assert isinstance(rows, int)
        exchanged = 4 * rows * config.model.context_length // sizes["cp"] * config.model.n_embd
    return replace(
        whole,
        weights=whole.weights // state,
        gradients=whole.gradients // state,
        optimizer=whole.optimizer // state,
        copies=whole.copies // state,
        gaps=whole.gaps * (activations + logits) // max(1, whole.activations + whole.logits),
        activations=activations,
        logits=logits,
        communication=exchanged,
    )


def _gathered(config: Config) -> int:
    """Bytes of weights and gradients that FSDP has in whole: the tables', and those of two blocks (or of all)."""
    model, width = config.model, 2 if config.distributed.gather == "bf16" else 4
    network = count_parameters(model, embeddings=False)
    tables = 4 * (count_parameters(model) - network)
    block = network // model.n_layer
    kept = network if not config.distributed.reshard else 2 * block
    return tables + width * kept + 4 * block
