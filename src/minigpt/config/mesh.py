"""Which meshes of processes can train a config, decided before anything starts."""

from minigpt.config.errors import RequestError
from minigpt.config.extension import Extension
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
        near = processes // others * others if multiple else dp * others
        needed = f"a multiple of {others} processes" if multiple else "1 process" if near == 1 else f"{near} processes"
        here = "this run is one process" if processes == 1 else f"this run has {processes}"
        raise RequestError(
            f"distributed.mesh={{{said}}} needs {needed}, and {here}: start it with --nproc {near} "
            f"or torchrun --nproc_per_node={near}, or change the mesh"
        )
    return {"pp": mesh.pp, "dp": dp, "fsdp": mesh.fsdp, "cp": mesh.cp, "tp": mesh.tp}


def refuse_mesh(config: Config, sizes: Sizes) -> None:
    """Raises RequestError, in one sentence, if this config cannot be trained on a mesh of these sizes."""
    if all(size == 1 for size in sizes.values()):
        return
    for rule in (_device_rules, _data_rules, _tensor_rules, _pipeline_rules):
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
            f"training.micro_batch={micro} cuts a batch of {rows} rows into {rows // micro}, which {shares} processes "
            f"cannot share equally: set training.micro_batch={fits}"
        )


def _tensor_rules(config: Config, sizes: Sizes) -> None:
    """Tensor and context parallel processes share heads, inner dimensions and the tokens of a row equally."""
    model, tp, cp = config.model, sizes["tp"], sizes["cp"]
    n, named = tp * cp, " * ".join(f"{name}={sizes[name]}" for name in ("tp", "cp") if sizes[name] > 1)
    if n == 1:
        return
    if config.objective.kind not in config.objective.BUILT_IN:
        raise RequestError(
            f"objective.kind={config.objective.kind} may need whole logits, which no process has with "
            f"distributed.mesh {named}: use dp, fsdp or an objective of {', '.join(config.objective.BUILT_IN)}"
        )
    if model.n_head % n:
        fits = max(d for d in range(1, n + 1) if model.n_head % d == 0 and n % d == 0)
        raise RequestError(
            f"model.n_head={model.n_head} heads cannot be shared equally by {n} processes (distributed.mesh {named}): "
            + (f"at most {fits} of these can" if fits > 1 else f"use a multiple of {n} heads")
        )
    lengths = {length: "schedule.context_length" for _, length in config.schedule.context_length or []}
    for length, key in (lengths | {model.context_length: "model.context_length"}).items():
        if length % n:
            raise RequestError(
                f"the {length} tokens of {key} cannot be shared equally by {n} processes (distributed.mesh {named}): "
                f"use a multiple of {n} tokens, such as {-(-length // n) * n}"
            )
    if tp > 1:
        _matrix_rules(config, tp)


def _matrix_rules(config: Config, tp: int) -> None:
    """What tensor parallel needs besides."""
    model = config.model
    if model.attention == "standard" and model.kv_heads % tp:
        raise RequestError(
            f"{model.kv_heads} key/value heads (model.n_kv_head) cannot be shared equally by distributed.mesh tp={tp} "
            "processes: use a divisor of them, or cp, which repeats them"
        )
    if isinstance(model.mlp, Extension):
        raise RequestError(
            f"model.mlp={model.mlp.kind} is your own, and distributed.mesh tp={tp} does not know how to cut it: "
            "use fsdp, which cuts any"
        )
    layers = range(model.n_layer)
    widths = {model.expert_size if model.has_experts(layer) else model.inner_size for layer in layers}
    if min(widths) < tp:
        raise RequestError(
            f"a feed-forward layer of width {min(widths)} cannot be shared by distributed.mesh tp={tp} processes: "
            "widen model.n_inner"
        )
    if config.training.float8 and (model.has_out_bias or model.has_mlp_bias):
        raise RequestError(
            f"training.float8=true with distributed.mesh tp={tp} cannot add the biases of attention's output and of "
            "feed-forward layers: set model.out_bias=false and model.mlp_bias=false"
        )


def _pipeline_rules(config: Config, sizes: Sizes) -> None:
    """Every stage needs a block, and a loss that is the network's own."""
    stages, layers = sizes["pp"], config.model.n_layer
    if stages > layers:
        raise RequestError(
            f"distributed.mesh.pp={stages} is more stages than model.n_layer={layers} has blocks: use {layers} at most"
        )
    if stages > 1 and config.objective.kind != "pretrain":
        raise RequestError(
            f"distributed.mesh.pp={stages} needs objective.kind=pretrain, whose loss the last stage makes by itself, "
            f"and it is {config.objective.kind}: set distributed.mesh.pp=1 and use fsdp or tp"
        )


def _context_is_open(config: Config) -> bool:
    """Whether the length of a row is that of a model which nobody has looked at yet."""
    return config.model.init_from is not None and "context_length" not in config.model.model_fields_set
