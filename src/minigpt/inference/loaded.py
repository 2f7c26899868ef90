"""A model from disk, ready to generate: what `minigpt.load(PATH)` gives and every command that takes a MODEL uses.

model = minigpt.load("runs/shakespeare-char")
print(model.generate("ROMEO:", max_new_tokens=100, temperature=0.8, seed=1).text)
for delta in model.stream("ROMEO:"):
    print(delta, end="", flush=True)
"""

import difflib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from minigpt.config import GenerationConfig, ModelConfig, RequestError
from minigpt.inference.engine import Generation, generate, generate_stream
from minigpt.interop.begin import begin_ids
from minigpt.interop.huggingface.reading import build_model
from minigpt.model import GPT
from minigpt.model.kernels import keep_few_kernels
from minigpt.storage import resolve_model
from minigpt.tokenizer import Tokenizer, load_tokenizer

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(repr=False)
class LoadedModel:
    """A network with its tokenizer (None if its folder has none: then prompts are token ids and texts are empty)."""

    model: GPT
    tokenizer: Tokenizer | None
    config: ModelConfig
    path: Path
    step: int | None = None
    """The training step that the weights are from, where the folder says so."""
    begin: tuple[int, ...] = ()
    """Ids that go before every text prompt, such as <bos> of a model that was not trained here."""

    def generate(
        self,
        prompt: str | Sequence[int] = "",
        *,
        should_stop: Callable[[], bool] = lambda: False,
        **options: Any,
    ) -> Generation | list[Generation]:
        """Text that follows `prompt` (text or token ids), without the prompt; a list if `num_samples` is above 1.

        options: the fields of `GenerationConfig`, such as max_new_tokens, temperature, top_k, seed and stop (a
        string or a list).
        Raises RequestError for an unknown or impossible option, and for a text prompt if there is no tokenizer.
        """
        config = generation_config(**options)
        samples = generate(self.model, self.tokenizer, [self.encode(prompt)], config, should_stop=should_stop)
        return samples[0] if config.num_samples == 1 else samples

    def stream(
        self,
        prompt: str | Sequence[int] = "",
        *,
        should_stop: Callable[[], bool] = lambda: False,
        **options: Any,
    ) -> Iterator[str]:
        """The text of `generate` in pieces as they become certain, for one sample. A wrong request raises at once."""
        config = generation_config(**options)
        if config.num_samples != 1:
            raise RequestError(f"num_samples={config.num_samples}: a stream is one text; use generate for several")
        if self.tokenizer is None:
            raise RequestError(
                f"{self.path} has no tokenizer, so there is no text to stream: use generate with token ids"
            )
        steps = generate_stream(self.model, self.tokenizer, [self.encode(prompt)], config, should_stop=should_stop)
        return (event.text for events in steps for event in events if event.text)

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """Token ids of a text, `begin` before them; ids stay as they are.

        Raises RequestError for a text if there is no tokenizer.
        """
        if not isinstance(prompt, str):
            return list(prompt)
        if self.tokenizer is None and prompt:
            raise RequestError(f"{self.path} has no tokenizer, so it cannot read text: give the prompt as token ids")
        return [*self.begin, *self.tokenizer.encode(prompt)] if self.tokenizer else list(self.begin)

    def __repr__(self) -> str:
        parameter = next(self.model.parameters())
        words = "no tokenizer" if self.tokenizer is None else f"{self.tokenizer.vocab_size:,} token ids"
        step = "" if self.step is None else f", step {self.step:,}"
        kind = str(parameter.dtype).removeprefix("torch.")
        return (
            f"LoadedModel({str(self.path)!r}{step}: {self.model.num_parameters():,} parameters, {self.config.n_layer} "
            f"layers, context {self.config.context_length:,}, {words}, {kind} on {parameter.device})"
        )


def load(
    path: str | Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    dtype: str | torch.dtype | None = None,
    trust_code: bool | None = None,
) -> LoadedModel:
    """Load a run, a checkpoint or a model folder, Hugging Face's too, for inference (evaluation mode, no gradients).

    device: `auto` (CUDA, else Apple's GPU, else the CPU) or a PyTorch device. threads: CPU threads of this process;
    default leaves
    PyTorch's setting. dtype: fp32 (default), bf16 or fp16. trust_code: run the Python file of a model that has a part
    of its own (default: what MINIGPT_TRUST_CODE says, else no).
    Raises RequestError if there is no such model or device, or no consent, WorkError if the files are damaged.
    """
    place = pick_device(device)
    kind = DTYPES.get(dtype) if isinstance(dtype, str) else dtype or torch.float32
    if kind is None or not kind.is_floating_point:
        raise RequestError(f"dtype={dtype} is not possible: choose one of {', '.join(DTYPES)}")
    if threads is not None:
        if threads < 1:
            raise RequestError(f"threads={threads} is not possible: it must be at least 1")
        torch.set_num_threads(threads)
    folder = resolve_model(path, log.warning)
    model = build_model(folder.path, place, trust_code).requires_grad_(False).to(kind)
    tokenizer = load_tokenizer(folder.tokenizer_path) if folder.tokenizer_path else None
    begin = tuple(i for i in begin_ids(folder.path) if i < (model.config.vocab_size or 0))
    return LoadedModel(model, tokenizer, model.config, folder.path, folder.step, begin)


def pick_device(name: str) -> torch.device:
    """The device of that name, or for `auto` the best one here. Raises RequestError if PyTorch cannot use it."""
    keep_few_kernels()
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RequestError(f"device={name} is not possible: choose auto, cpu, cuda, cuda:N or mps") from None
    usable = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= usable.get(device.type, 0):
        raise RequestError(
            f"device={name} is not possible: PyTorch finds no such device here; auto picks one that works"
        )
    return device


def generation_config(**options: Any) -> GenerationConfig:
    """A `GenerationConfig` from keyword options. Raises RequestError in one sentence that names the option."""
    known = list(GenerationConfig.model_fields)
    for name, value in options.items():
        if name not in known:
            nearest = (difflib.get_close_matches(name, known, 1, 0) or known)[0]
            raise RequestError(f"unknown option {name}={value!r}: the nearest one is {nearest}")
    if isinstance(options.get("stop"), str):
        options["stop"] = [options["stop"]]
    try:
        return GenerationConfig(**options)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        raise RequestError(f"{name}={first['input']!r} is not possible: expected {expected}") from None
