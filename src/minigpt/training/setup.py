"""From a config to what a run is made of: device and threads, tokenizer, token data, model, objective."""

import hashlib
import importlib.util
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch

from minigpt.config import Config, RequestError
from minigpt.config.mesh import refuse_mesh
from minigpt.config.pace import Pace
from minigpt.data import PreparedData, prepare
from minigpt.inference import pick_device
from minigpt.interop.huggingface.reading import read_state
from minigpt.model import GPT
from minigpt.model.float8 import require_float8
from minigpt.model.init import initial_tensors
from minigpt.objectives import Objective, make_objective
from minigpt.parallel.build import fill, parallelise
from minigpt.parallel.launch import device_of
from minigpt.parallel.parallel import Parallel
from minigpt.parallel.world import World
from minigpt.storage import cache_dir, resolve_model
from minigpt.tokenizer import Tokenizer
from minigpt.training.allocator import keep_freed_memory, returned_bytes
from minigpt.training.cores import available_cores
from minigpt.training.extensions import settle_extensions
from minigpt.training.network import settle_network
from minigpt.training.planning.rows import fitting_rows
from minigpt.training.seeds import derived_seed
from minigpt.training.tokenizers import make_tokenizer as make_tokenizer

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int | None], None]


def settle_hardware(
    config: Config, saved: Config | None = None, world: World | None = None
) -> tuple[Config, torch.device]:
    """Replace `auto` device and threads by what they are: the saved run's where there is one.

    Sets PyTorch's threads and its deterministic algorithms. Of several processes each has a device and threads of its
    own, which say nothing about the next start of the run: their numbers stay open.
    """
    run, world = config.run, world or World()
    alone = world.size == 1
    if alone:
        device = pick_device(saved.run.device if saved and run.device == "auto" else run.device)
    else:
        device = pick_device(device_of(config, world))
    threads = run.threads or (saved.run.threads if saved and alone else None) or available_cores() // world.local_size
    threads = max(1, threads)
    torch.set_num_threads(threads)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic
    # what `use_deterministic_algorithms` does, but for the compiler, which that imports: it takes a second and a half
    torch.set_deterministic_debug_mode("error" if run.deterministic else "default")
    # A debugging aid that costs 5 % of a small step; the module makes the attribute at run time.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    torch.backends.cudnn.benchmark = False
    config = settle_arithmetic(config, device)
    if device.type == "cpu":
        keep_freed_memory(returned_bytes(config, world.sizes["fsdp"]))
    compiled = config.training.compile
    if compiled and not can_compile(device):
        logger.warning("training.compile=true is left out: no compiler was found (install g++, or name one in CXX)")
        compiled = False
    if compiled:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "inductor"))
        torch.use_deterministic_algorithms(run.deterministic)
    settled = {"device": str(device), "threads": threads} if alone else {"device": device.type}
    run = run.model_copy(update=settled)
    training = config.training.model_copy(update={"compile": compiled})
    return config.model_copy(update={"run": run, "training": training}), device


def settle_arithmetic(config: Config, device: torch.device) -> Config:
    """Whether fp32 products may be TF32: only if the config says so. RequestError for float8 where there is none."""
    training = config.training
    if training.float8:
        require_float8(device)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = training.tf32
    elif training.tf32:
        logger.warning(f"training.tf32=true is left out: it is arithmetic of NVIDIA's GPUs, and this is {device}")
        training = training.model_copy(update={"tf32": False})
    return config.model_copy(update={"training": training})


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile finds what it needs: on a CPU a C++ compiler (CXX names one, as for torch itself)."""
    if device.type == "cuda":  # Triton comes with PyTorch for Linux only
        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++", "cl") if name)


def settle_micro_batch(config: Config, device: torch.device, saved: Config | None = None, shares: int = 1) -> Config:
    """A number for `training.micro_batch=auto`: the saved run's, or as many rows as the memory takes.

    shares: how many processes take equally many micro-batches of a step each.
    """
    training = config.training
    if training.micro_batch != "auto":
        return config
    rows = saved.training.micro_batch if saved and saved.batch_rows == config.batch_rows else None
    if not isinstance(rows, int) or config.batch_rows % (rows * shares):
        rows = fitting_rows(config, device, shares)
    return config.model_copy(update={"training": training.model_copy(update={"micro_batch": rows})})


@dataclass
class Parts:
    """What a run is made of, with the config in which nothing is left open."""

    config: Config
    device: torch.device
    tokenizer: Tokenizer
    data: PreparedData
    max_steps: int

    def model(self) -> GPT:
        """The network, on its device; its weights mean nothing before `initialise`."""
        with torch.device("meta"):
            model = GPT(self.config.model)
        return model.to_empty(device=self.device)

    def initialise(self, network: GPT | Parallel) -> None:
        """First weights: from the seed, or those of `model.init_from`. Each process takes what it holds of them."""
        config, origin = self.config, self.config.model.init_from
        generator = torch.Generator().manual_seed(derived_seed("weights", config.run.seed))
        if isinstance(network, Parallel) and network.world.size > 1:
            with torch.device("meta"):
                whole = GPT(config.model)
            drawn = initial_tensors(whole, config.model, generator)
            fill(network, drawn if origin is None else read_state(resolve_model(origin).path).items())
            return
        model = network.model if isinstance(network, Parallel) else network
        if origin is None:
            model.init_weights(generator)
        else:
            model.load_state_dict(read_state(resolve_model(origin).path))

    def parallel(self, world: World) -> Parallel:
        """The network, spread over the processes and compiled if it is to be."""
        return parallelise(self.config, world, self.device)

    @property
    def data_fingerprint(self) -> str:
        """What a run must find again when it goes on: its text, and the shards of it if these shape the order."""
        settings = self.config.data
        if settings.packing == "documents" or not settings.shuffle or settings.shuffle_tokens is not None:
            return self.data.fingerprint
        stretches = [source.train.stretch for source in self.data.sources]
        if not any(stretches):
            return self.data.fingerprint
        return hashlib.sha256(f"{self.data.fingerprint} {stretches}".encode()).hexdigest()

    def objective(self) -> Objective:
        """The meaning of the rows."""
        return make_objective(self.config, self.data, self.tokenizer, self.max_steps)


def assemble(
    config: Config,
    *,
    saved: Config | None = None,
    tokenizer: Tokenizer | None = None,
    on_progress: Progress | None = None,
    world: World | None = None,
) -> Parts:
    """Settle everything that the config leaves open and open the data. Raises RequestError in one sentence.

    saved: the resolved config of the run that goes on. tokenizer: that run's own.
    """
    world = world or World()
    config, device = settle_hardware(settle_extensions(settle_network(config, saved)), saved, world)
    refuse_mesh(config, world.sizes)
    tokenizer = tokenizer or make_tokenizer(config, on_progress)
    model = config.model
    if model.vocab_size is None:
        model = model.model_copy(update={"vocab_size": tokenizer.vocab_size})
    if tokenizer.vocab_size > (model.vocab_size or 0):
        raise RequestError(
            f"model.vocab_size={model.vocab_size} is too small for the tokenizer's {tokenizer.vocab_size:,} ids"
        )
    config = config.model_copy(update={"model": model})
    data = prepare(config.data, tokenizer, on_progress=on_progress)
    data.require_context(model.context_length)
    stages = world.data_size * world.sizes["pp"]  # of a pipeline, each has work while there are as many micro-batches
    shares = stages if config.batch_rows % stages == 0 else world.data_size
    config = settle_micro_batch(config, device, saved, shares)
    rows_per_epoch = None
    if config.training.epochs is not None and data.stream is None:
        rows_per_epoch = make_objective(config, data, tokenizer).rows_per_epoch
    return Parts(config, device, tokenizer, data, steps_of(config, rows_per_epoch))


def steps_of(config: Config, rows_per_epoch: int | None) -> int:
    """Optimizer steps of the run; rows_per_epoch is needed for a length in epochs. RequestError: there is none."""
    training = config.training
    if training.max_steps is not None:
        return training.max_steps
    if training.max_tokens is not None:
        return Pace(config).steps_of(-(-training.max_tokens // config.model.context_length))
    if training.epochs is not None and rows_per_epoch is None:
        raise RequestError(
            "training.epochs needs to know how long the text is, and data.streaming=true does not: set "
            "training.max_steps or training.max_tokens instead"
        )
    if training.epochs is not None and rows_per_epoch is not None:
        return max(1, Pace(config).steps_of(int(training.epochs * rows_per_epoch)))
    raise RequestError("the run has no length: set training.max_steps, training.max_tokens or training.epochs")
