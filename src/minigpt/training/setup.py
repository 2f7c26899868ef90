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
from minigpt.data import PreparedData, prepare
from minigpt.inference import pick_device
from minigpt.interop.huggingface.reading import read_state
from minigpt.model import GPT
from minigpt.model.count import count_parameters
from minigpt.objectives import Objective, make_objective
from minigpt.storage import cache_dir, resolve_model
from minigpt.tokenizer import Tokenizer
from minigpt.training.allocator import keep_freed_memory
from minigpt.training.cores import available_cores
from minigpt.training.extensions import settle_extensions
from minigpt.training.network import settle_network
from minigpt.training.seeds import derived_seed
from minigpt.training.tokenizers import make_tokenizer as make_tokenizer

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int | None], None]

ACTIVATION_SHARE = 0.5  # of the free memory; weights, gradients and optimizer state are taken off first
CPU_TOKENS = 8192  # more tokens at once make a CPU no faster, only the memory larger


def settle_hardware(config: Config, saved: Config | None = None) -> tuple[Config, torch.device]:
    """Replace `auto` device, threads and micro-batch by numbers: the saved run's where there is one.

    Sets PyTorch's threads and its deterministic algorithms.
    """
    run = config.run
    device_name = saved.run.device if saved and run.device == "auto" else run.device
    device = pick_device(device_name)
    threads = run.threads or (saved.run.threads if saved else None) or available_cores()
    torch.set_num_threads(threads)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic
    # what `use_deterministic_algorithms` does, but for the compiler, which that imports: it takes a second and a half
    torch.set_deterministic_debug_mode("error" if run.deterministic else "default")
    # A debugging aid that costs 5 % of a small step; the module makes the attribute at run time.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    torch.backends.cudnn.benchmark = False
    if device.type == "cpu":
        keep_freed_memory()
    compiled = config.training.compile
    if compiled and not can_compile(device):
        logger.warning("training.compile=true is left out: no compiler was found (install g++, or name one in CXX)")
        compiled = False
    if compiled:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "inductor"))
        torch.use_deterministic_algorithms(run.deterministic)
    run = run.model_copy(update={"device": str(device), "threads": threads})
    training = config.training.model_copy(update={"compile": compiled})
    return config.model_copy(update={"run": run, "training": training}), device


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile finds what it needs: on a CPU a C++ compiler (CXX names one, as for torch itself)."""
    if device.type == "cuda":  # Triton comes with PyTorch for Linux only
        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++", "cl") if name)


def settle_micro_batch(config: Config, device: torch.device, saved: Config | None = None) -> Config:
    """A number for `training.micro_batch=auto`: the saved run's, or as many rows as the memory takes."""
    training = config.training
    if training.micro_batch != "auto":
        return config
    rows = saved.training.micro_batch if saved and saved.batch_rows == config.batch_rows else None
    if not isinstance(rows, int):
        rows = fitting_rows(config, device)
    return config.model_copy(update={"training": training.model_copy(update={"micro_batch": rows})})


def activation_bytes(config: Config) -> int:
    """Memory that one token's activations take in training: a rough upper estimate for planning.

    Counts per block what autograd keeps (norm inputs and outputs, q, k, v, attention's output, the feed-forward's
    inner layers, residual sums), in the arithmetic's width, after Korthikanti et al. 2022, section 4.1, with fused
    attention, plus fp32 copies of the residual stream.
    """
    model = config.model
    width = 4 if config.training.precision == "fp32" else 2
    heads = model.n_head * model.query_size + model.kv_heads * (model.query_size + model.value_size)
    experts = (model.moe.n_expert_used + model.moe.n_shared) * model.expert_size if model.moe.n_expert else 0
    inner = 3 * max(model.inner_size, experts)
    block = width * (4 * model.n_embd + 2 * heads + 2 * inner) + 4 * 4 * model.n_embd
    return model.n_layer * block + 6 * 4 * model.n_embd


def weight_bytes(parameters: int) -> int:
    """fp32 weights, gradients and AdamW's two moments."""
    return 16 * parameters


def fitting_rows(config: Config, device: torch.device) -> int:
    """The largest number of rows that divides the batch and should fit."""
    tokens = float(CPU_TOKENS)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        rest = max(0, free - weight_bytes(count_parameters(config.model)))
        tokens = ACTIVATION_SHARE * rest / activation_bytes(config)
    most = max(1, int(tokens // config.model.context_length))
    return max(d for d in range(1, config.batch_rows + 1) if config.batch_rows % d == 0 and d <= most)


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

    def initialise(self, model: GPT) -> None:
        """First weights: from the seed, or those of `model.init_from`."""
        config = self.config
        if config.model.init_from is None:
            model.init_weights(torch.Generator().manual_seed(derived_seed("weights", config.run.seed)))
            return
        model.load_state_dict(read_state(resolve_model(config.model.init_from).path))

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
) -> Parts:
    """Settle everything that the config leaves open and open the data. Raises RequestError in one sentence.

    saved: the resolved config of the run that goes on. tokenizer: that run's own.
    """
    config, device = settle_hardware(settle_extensions(settle_network(config, saved)), saved)
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
    config = settle_micro_batch(config, device, saved)
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
        return -(-training.max_tokens // training.batch_tokens)
    if training.epochs is not None and rows_per_epoch is None:
        raise RequestError(
            "training.epochs needs to know how long the text is, and data.streaming=true does not: set "
            "training.max_steps or training.max_tokens instead"
        )
    if training.epochs is not None and rows_per_epoch is not None:
        return max(1, -(-int(training.epochs * rows_per_epoch) // config.batch_rows))
    raise RequestError("the run has no length: set training.max_steps, training.max_tokens or training.epochs")
