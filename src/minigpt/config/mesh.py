"""Which meshes of processes can train a config, decided before anything starts."""

from minigpt.config.errors import RequestError
from minigpt.config.tree import Config

Sizes = dict[str, int]
"""Of the dimensions pp, dp, fsdp, cp and tp."""


def settle_mesh(config: Config, processes: int) -> Sizes:
    """The size of every dimension for so many processes, the outermost first.

    Raises RequestError if `distributed.mesh` is of another number of processes.
    """
    mesh = config.distributed.mesh
    others = mesh.fsdp * mesh.tp * mesh.pp * mesh.cp
    dp = mesh.dp if mesh.dp is not None else max(1, processes // others)
    if dp * others != processes:
        said = ", ".join(f"{name}: {size}" for name, size in mesh if size not in (None, 1)) or f"dp: {mesh.dp}"
        multiple = mesh.dp is None and processes > others
        needed = f"a multiple of {others}" if multiple else f"{dp * others}"
        near = processes // others * others if multiple else dp * others
        here = "this run is one process" if processes == 1 else f"this run has {processes}"
        raise RequestError(
            f"distributed.mesh={{{said}}} needs {needed} processes, and {here}: start it with --nproc {near} "
            f"or torchrun --nproc_per_node={near}, or change the mesh"
        )
    return {"pp": mesh.pp, "dp": dp, "fsdp": mesh.fsdp, "cp": mesh.cp, "tp": mesh.tp}


def refuse_mesh(config: Config, sizes: Sizes) -> None:
    """Raises RequestError, in one sentence, if this config cannot be trained on a mesh of these sizes."""
    if all(size == 1 for size in sizes.values()):
        return
    for rule in (_device_rules, _data_rules):
        rule(config, sizes)


def _device_rules(config: Config, sizes: Sizes) -> None:
    """Every process needs a device of its own, and all of a kind."""
    device = config.run.device
    if device == "mps" or device.startswith("cuda:"):
        use = "run.device=cpu" if device == "mps" else "run.device=cuda, of which each process takes its own"
        raise RequestError(f"run.device={device} is one device, and several processes would share it: set {use}")


def _data_rules(config: Config, sizes: Sizes) -> None:
    """Every process takes equally many of a step's micro-batches."""
    training, shares = config.training, sizes["dp"] * sizes["fsdp"]
    if config.distributed.gather == "bf16" and training.precision != "bf16":
        raise RequestError(
            f"distributed.gather=bf16 rounds the weights of a network that computes in {training.precision}: "
            "set training.precision=bf16, or distributed.gather=fp32"
        )
    if shares == 1:
        return
    for _, count in config.schedule.accumulation or []:
        if count % shares:
            raise RequestError(
                f"schedule.accumulation has {count} micro-batches, which {shares} processes cannot share equally: "
                f"use a multiple of {shares}"
            )
    if config.schedule.accumulation is not None or _context_is_open(config):
        return
    rows, micro = config.batch_rows, training.micro_batch
    if rows % shares:
        length = config.model.context_length
        more = (rows // shares + 1) * shares * length
        raise RequestError(
            f"training.batch_tokens={training.batch_tokens} is {rows} rows of {length}, which {shares} processes "
            f"cannot share equally: use {more}"
        )
    if isinstance(micro, int) and rows // micro % shares:
        fits = max(d for d in range(1, min(micro, rows // shares) + 1) if rows // shares % d == 0)
        raise RequestError(
            f"training.micro_batch={micro} makes {rows // micro} micro-batches of a batch of {rows} rows, which "
            f"{shares} processes cannot share equally: use {fits}"
        )


def _context_is_open(config: Config) -> bool:
    """Whether the length of a row is that of a model which nobody has looked at yet."""
    return config.model.init_from is not None and "context_length" not in config.model.model_fields_set
