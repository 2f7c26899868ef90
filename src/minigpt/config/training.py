"""How training goes: the run, objective, optimizer, schedule, loop, evaluation, checkpoints and callbacks."""

from typing import Literal, Self

from pydantic import Field, model_validator

from minigpt.config.base import Section
from minigpt.config.extension import Extension, Extensions


class RunConfig(Section):
    """The run as a whole."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the run, and of its folder under runs/; null means the config's name."""
    seed: int = Field(1337, ge=0, lt=2**63)
    """Seed of the initial weights, of the order of the data, and of dropout."""
    device: str = "auto"
    """cpu, cuda, cuda:N, mps, or auto for the best one present."""
    threads: int | None = Field(None, ge=1)
    """CPU threads that PyTorch uses; null means the physical cores that this process may use."""
    deterministic: bool = True
    """Use PyTorch's deterministic algorithms, so that two runs are equal to the bit on the same hardware."""


class ObjectiveConfig(Extension):
    """What a batch means."""

    BUILT_IN = ("pretrain",)

    kind: str = "pretrain"
    """pretrain: predict each next token of the text; or path/to/file.py:Class, whose options are keys beside it."""


class TrainingConfig(Section):
    """The loop."""

    max_steps: int | None = Field(None, ge=1)
    """Length of the run in optimizer steps (or give `max_tokens` or `epochs`)."""
    max_tokens: int | None = Field(None, ge=1)
    """Length of the run in tokens, rounded up to whole steps."""
    epochs: float | None = Field(None, gt=0)
    """Length of the run in passes over the training text, rounded up to whole steps."""
    batch_tokens: int = Field(32768, ge=1)
    """Target tokens of one optimizer step: a multiple of the context length."""
    micro_batch: int | Literal["auto"] = "auto"
    """Rows that go through the network at once; gradients accumulate over the rest. auto fits them to the memory."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the network: fp32, or autocast to bf16, or to fp16 with loss scaling. Weights stay fp32."""
    compile: bool = False
    """Compile each block of the network with torch.compile; left out, with one line, where no compiler is found."""
    tf32: bool = False
    """Let GPUs round the inputs of fp32 matrix products to TF32 (10 bits of mantissa); otherwise fp32 is fp32."""
    float8: bool = False
    """With precision=bf16, the large products in float8 (Hopper GPUs and newer; needs the extra float8)."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What is computed again in the backward pass to spare memory: nothing, all but large products, or each block."""
    z_loss: float = Field(0.0, ge=0)
    """Weight of log(Z)^2 added to each target's loss, Z the softmax's sum (Chowdhery et al. 2022, PaLM, section 5)."""
    grad_clip: float | None = Field(1.0, gt=0)
    """Scale gradients down to this global norm; null means never."""
    overfit_batches: int | None = Field(None, ge=1)
    """Train and validate on the first N batches only, over and over: a check that the model can learn."""
    max_bad_steps: int = Field(3, ge=1)
    """After this many steps in a row with a non-finite loss or gradient, go back to the last good checkpoint."""
    max_restores: int = Field(3, ge=0)
    """Stop with a report after going back this many times."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        lengths = {k: v for k in ("max_steps", "max_tokens", "epochs") if (v := getattr(self, k)) is not None}
        if len(lengths) > 1:
            said = " and ".join(f"training.{key}={value}" for key, value in lengths.items())
            raise ValueError(f"{said} both set the length of the run: keep one of them")
        if isinstance(self.micro_batch, int) and self.micro_batch < 1:
            raise ValueError(f"training.micro_batch={self.micro_batch} must be at least 1")
        return self


class EvaluationConfig(Section):
    """Validation loss while training."""

    every_steps: int | None = Field(250, ge=1)
    """Steps between two evaluations, besides the one at the end; null means only that one."""
    max_tokens: int | None = Field(None, ge=1)
    """Evaluate on about this many tokens, spread evenly over the validation text; null means all of it."""


class CheckpointConfig(Section):
    """Saving the run."""

    every_steps: int | None = Field(500, ge=1)
    """Steps between two checkpoints, besides the one at the end; null means no regular ones."""
    every_minutes: float | None = Field(10.0, gt=0)
    """Minutes after which a checkpoint is saved even if none was due; null means never."""
    keep_last: int = Field(2, ge=2)
    """How many of the newest checkpoints to keep; the best one is kept besides."""
    best: bool = True
    """Also save at each evaluation with the lowest validation loss so far."""
    background: bool = True
    """Write checkpoints while training goes on."""


class SampleConfig(Section):
    """Text generated while training, so that one can watch the model learn."""

    every_steps: int | None = Field(None, ge=1)
    """Steps between two samples; null means none."""
    prompt: str = ""
    """Text that each sample continues."""
    max_new_tokens: int = Field(100, ge=1)
    """Length of a sample in tokens."""
    temperature: float = Field(0.8, ge=0)
    """Temperature of the drawing."""


class EarlyStoppingConfig(Section):
    """Ending the run when the validation loss has stopped falling."""

    patience: int | None = Field(None, ge=1)
    """Stop after this many evaluations in a row without a better validation loss; null means never."""
    min_delta: float = Field(0.0, ge=0)
    """How much lower a loss must be to count as better."""


class MonitorConfig(Section):
    """Norms of the weights by part of the network."""

    every_steps: int | None = Field(None, ge=1)
    """Steps between two measurements; null means none."""


class CallbacksConfig(Section):
    """What else happens while training."""

    sample: SampleConfig = SampleConfig()
    """Samples while training."""
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    """Early stopping."""
    monitor: MonitorConfig = MonitorConfig()
    """Weight norms."""
    own: Extensions = Field([])
    """A list of your own, in order, each path/to/file.py:Class, or {kind: ...} and its options."""
