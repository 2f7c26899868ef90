"""The whole config: one tree, and the rules that hold between its sections."""

from collections.abc import Callable
from typing import Any, Self

from pydantic import PrivateAttr, model_validator

from minigpt.config.base import Section
from minigpt.config.data import DataConfig
from minigpt.config.distributed import DistributedConfig
from minigpt.config.loggers import LoggersConfig
from minigpt.config.model import ModelConfig
from minigpt.config.optimizer import OptimizerConfig, ScheduleConfig
from minigpt.config.sources import SourceConfig
from minigpt.config.tokenizer import TRAINED, TokenizerConfig
from minigpt.config.training import (
    CallbacksConfig,
    CheckpointConfig,
    EvaluationConfig,
    ObjectiveConfig,
    RunConfig,
    TrainingConfig,
)

MOST_TOKENS = 2**31
"""Of one step, whose rows are kept in a list; Llama 3 405B came to 16 million (Dubey et al. 2024, section 3.4.1)."""


class Config(Section):
    """Everything that determines a run."""

    run: RunConfig = RunConfig()
    """The run as a whole."""
    model: ModelConfig = ModelConfig()
    """The network."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """How text becomes token ids."""
    data: DataConfig = DataConfig()
    """Training and validation text."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """What a batch means."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer."""
    schedule: ScheduleConfig = ScheduleConfig()
    """What changes over the run."""
    training: TrainingConfig = TrainingConfig()
    """The loop."""
    distributed: DistributedConfig = DistributedConfig()
    """Several processes."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Validation while training."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Saving the run."""
    loggers: LoggersConfig = LoggersConfig()
    """Reports."""
    callbacks: CallbacksConfig = CallbacksConfig()
    """What else happens while training."""

    _preset: str | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.model.init_from is None or "context_length" in self.model.model_fields_set:
            self.require_whole_batches()  # otherwise the context is that of a model that nobody has looked at yet
        if self.data.streaming and self.training.overfit_batches is not None:
            raise ValueError(
                "training.overfit_batches repeats its rows, and those of data.streaming=true come once: set it to false"
            )
        self._require_possible_arithmetic()
        moe = self.model.moe
        if moe.n_expert > moe.n_expert_used == 1 and moe.normalize and self.model.init_from is None:
            raise ValueError(
                "model.moe.n_expert_used=1 with model.moe.normalize=true gives the one chosen expert the weight 1 "
                "whatever its score, so the router would not learn: set model.moe.normalize=false"
            )
        if self.schedule.kind != "constant" and self.schedule.min_lr > self.optimizer.lr:
            raise ValueError(
                f"schedule.min_lr={self.schedule.min_lr} is above the peak optimizer.lr={self.optimizer.lr}"
            )
        return self

    def require_whole_batches(self) -> None:
        """Raises ValueError unless rows of the context fill the batch, and micro-batches its rows."""
        length, tokens = self.model.context_length, self.training.batch_tokens
        self._require_possible_schedules()
        micro, counts = self.training.micro_batch, [count for _, count in self.schedule.accumulation or []]
        largest = max(counts) * micro * length if counts and isinstance(micro, int) else tokens
        if largest > MOST_TOKENS:
            key = "schedule.accumulation" if counts else "training.batch_tokens"
            raise ValueError(f"{key} makes a step of {largest:,} tokens: use at most {MOST_TOKENS:,}")
        if self.schedule.accumulation is not None:
            return  # it counts micro-batches
        if tokens % length:
            lower = tokens // length * length
            near = f"{lower} or {lower + length}" if lower else f"{length}"
            raise ValueError(
                f"training.batch_tokens={tokens} is not a multiple of model.context_length={length}: use {near}"
            )
        rows = self.batch_rows
        if isinstance(micro, int) and rows % micro:
            divisor = max(d for d in range(1, min(rows, micro) + 1) if rows % d == 0)
            raise ValueError(
                f"training.micro_batch={micro} does not divide the {rows} rows of a batch "
                f"(training.batch_tokens / model.context_length): use {divisor}"
            )

    def _require_possible_arithmetic(self) -> None:
        """Raises ValueError for what cannot be combined."""
        training = self.training
        if training.float8 and training.precision != "bf16":
            raise ValueError(
                f"training.float8=true is for the products of training.precision=bf16, which is {training.precision}"
            )
        if training.compile and training.activation_checkpointing == "selective" and self.model.moe.n_expert:
            raise ValueError(
                "training.activation_checkpointing=selective cannot look into compiled blocks with experts: set "
                "training.activation_checkpointing=full or training.compile=false"
            )

    def _require_possible_schedules(self) -> None:
        """Raises ValueError unless the schedules of rows and windows lead to what the model then has."""
        schedule, model = self.schedule, self.model
        if schedule.accumulation is not None and self.training.micro_batch == "auto":
            raise ValueError(
                "schedule.accumulation counts micro-batches, and training.micro_batch=auto leaves open how large they "
                "are: set it to the rows of one"
            )
        for key, size in (("context_length", model.context_length), ("attention_window", model.attention_window)):
            name = "window" if key == "attention_window" else key
            pairs = getattr(schedule, name)
            if pairs is None or size is None:
                continue
            if pairs[-1][1] != size or max(value for _, value in pairs) > size:
                raise ValueError(
                    f"schedule.{name}={pairs} must grow to model.{key}={size}, which is what the model has when it is "
                    "used: end with that, and go no higher"
                )
        for _, length in schedule.context_length or []:
            if model.context_length % length:
                raise ValueError(
                    f"schedule.context_length has rows of {length} tokens, into which model.context_length="
                    f"{model.context_length} cannot be cut: use a divisor of it"
                )

    @property
    def preset(self) -> str | None:
        """Name of the preset that it was made from, for people: the values are all in the sections."""
        return self._preset

    @property
    def batch_rows(self) -> int:
        """Rows (of `model.context_length` tokens) in one optimizer step; with `schedule.accumulation`, in the first."""
        accumulation, micro = self.schedule.accumulation, self.training.micro_batch
        if accumulation is not None and isinstance(micro, int):
            return accumulation[0][1] * micro
        return self.training.batch_tokens // self.model.context_length


def ineffective(config: Config) -> dict[str, str]:
    """Keys that can have no effect in this config, each with the reason as "because ..."."""
    model, tokenizer, schedule = config.model, config.tokenizer, config.schedule
    callbacks, data, loggers = config.callbacks, config.data, config.loggers
    off: dict[str, str] = {}

    def rule(condition: bool, reason: str, *keys: str) -> None:
        off.update({key: reason for key in keys if condition})

    _data_rules(data, rule)
    _optimizer_rules(config, rule)
    if model.init_from is None:
        _model_rules(model, rule)
        if schedule.window is not None and "schedule.window" not in off:
            off.pop("model.attention_window", None)  # it may grow until it takes in the whole context
            off.pop("model.window_pattern", None)
        _tokenizer_rules(tokenizer, rule)
    else:
        rule(True, "model.init_from gives the initial weights",
             "model.init_std", "model.init_residual", "model.init_head_std")  # fmt: skip
        rule(True, "model.init_from brings its own tokenizer", *_keys("tokenizer", tokenizer))
    rule(schedule.kind == "constant", "schedule.kind=constant does not decay", "schedule.min_lr")
    rule(schedule.kind != "wsd", f"schedule.kind={schedule.kind} decays over the whole run", "schedule.decay_fraction")
    rule(callbacks.sample.every_steps is None, "callbacks.sample.every_steps=null draws no samples",
         "callbacks.sample.prompt", "callbacks.sample.max_new_tokens", "callbacks.sample.temperature")  # fmt: skip
    rule(callbacks.early_stopping.patience is None, "callbacks.early_stopping.patience=null never stops",
         "callbacks.early_stopping.min_delta")  # fmt: skip
    rule(config.training.overfit_batches is not None, "training.overfit_batches validates on its own batches",
         "data.val", "evaluation.max_tokens")  # fmt: skip
    kept = data.val_documents if data.streaming else data.val_fraction
    rule(data.val is None and not kept and config.training.overfit_batches is None,
         "data.streaming=true without data.val and data.val_documents has no validation text" if data.streaming
         else "data.val_fraction=0 leaves no validation text", "evaluation.every_steps", "evaluation.max_tokens",
         "callbacks.early_stopping.patience", "callbacks.early_stopping.min_delta")  # fmt: skip
    rule(config.evaluation.every_steps is None, "evaluation.every_steps=null evaluates at the end only",
         "callbacks.early_stopping.patience", "callbacks.early_stopping.min_delta")  # fmt: skip
    rule(config.objective.kind in config.objective.BUILT_IN, f"objective.kind={config.objective.kind} is no file",
         "objective.sha256")  # fmt: skip
    rule(not loggers.wandb.enabled, "loggers.wandb.enabled=false sends nothing to Weights & Biases",
         *(f"loggers.wandb.{key}" for key in type(loggers.wandb).model_fields if key != "enabled"))  # fmt: skip
    rule(not loggers.trackio.enabled, "loggers.trackio.enabled=false sends nothing to Trackio",
         "loggers.trackio.project")  # fmt: skip
    rule(not loggers.show_histograms, "no logger that shows histograms (TensorBoard, ...) is on",
         "loggers.histograms_every_steps")  # fmt: skip
    return off


def _optimizer_rules(config: Config, rule: Callable[..., None]) -> None:
    """What can have no effect of the optimizer's and the processes' options."""
    optimizer, schedule, mesh = config.optimizer, config.schedule, config.distributed.mesh
    rule(optimizer.name != "muon", f"optimizer.name={optimizer.name} is not muon",
         *_keys("optimizer.muon", optimizer.muon))  # fmt: skip
    rule(not optimizer.muon.normalise, "optimizer.muon.normalise=false has no second moment", "optimizer.muon.beta2")
    decays = [optimizer.weight_decay, *(group.weight_decay for group in optimizer.groups)]
    rule(not any(decays), "optimizer.weight_decay=0 has no decay that could be cautious", "optimizer.muon.cautious")
    changing = (schedule.accumulation, schedule.context_length, schedule.window)
    rule(all(steps is None for steps in changing), "nothing changes over the run by schedule.accumulation, "
         "schedule.context_length or schedule.window", "schedule.unit")  # fmt: skip
    rule(schedule.accumulation is not None, "schedule.accumulation gives the batch", "training.batch_tokens")
    model = config.model
    rule(model.init_from is None and not any(model.window(layer) is not None for layer in range(model.n_layer)),
         "no layer has a short window (model.attention_window, model.window_pattern)", "schedule.window")  # fmt: skip
    rule(config.training.precision != "fp32", f"training.precision={config.training.precision} is narrower than TF32",
         "training.tf32")  # fmt: skip
    rule(mesh.fsdp == 1, "distributed.mesh.fsdp=1 cuts no weights", "distributed.reshard", "distributed.gather")
    rule(mesh.pp == 1, "distributed.mesh.pp=1 has one stage", "distributed.pipeline")


def _tokenizer_rules(tokenizer: TokenizerConfig, rule: Callable[..., None]) -> None:
    """What can have no effect in the section `tokenizer`, and what that section leaves without one."""
    rule(tokenizer.kind != "bpe", f"tokenizer.kind={tokenizer.kind} trains no byte-level BPE", "tokenizer.pattern")
    rule(tokenizer.kind == "char" or tokenizer.kind not in TRAINED,
         f"tokenizer.kind={tokenizer.kind} learns no vocabulary", "tokenizer.vocab_size", "tokenizer.special_tokens",
         "tokenizer.sample_characters")  # fmt: skip
    rule(tokenizer.kind in TRAINED, f"tokenizer.kind={tokenizer.kind} is built from the training text",
         "tokenizer.path")  # fmt: skip
    rule(tokenizer.kind != "tiktoken", f"tokenizer.kind={tokenizer.kind} is no encoding of tiktoken",
         "tokenizer.encoding")  # fmt: skip
    rule(tokenizer.kind == "char", "tokenizer.kind=char has no end-of-text token", "data.append_eot")


def _model_rules(model: ModelConfig, rule: Callable[..., None]) -> None:
    """What can have no effect in the section `model`."""
    scaling, moe = model.rope_scaling, model.moe
    rule(model.position != "rope", "model.position=learned has no rotation",
         "model.rope_theta", "model.rope_local_theta", "model.partial_rotary_factor",
         *_keys("model.rope_scaling", scaling))  # fmt: skip
    rule(model.attention != "standard", "model.attention=latent makes every head's keys and values from one vector",
         "model.n_kv_head", "model.partial_rotary_factor", "model.qk_norm")  # fmt: skip
    rule(model.attention != "latent", f"model.attention={model.attention} is not latent attention",
         *_keys("model.latent", model.latent))  # fmt: skip
    rule(model.attention_window is None, "model.attention_window=null lets every layer see everything",
         "model.window_pattern", "model.rope_local_theta")  # fmt: skip
    window, short = model.attention_window, [model.window(layer) is not None for layer in range(model.n_layer)]
    rule(window is not None and not any(short),
         f"model.window_pattern={model.window_pattern} has no short window for any of the {model.n_layer} layers",
         "model.attention_window", "model.rope_local_theta")  # fmt: skip
    local = model.position == "rope" and model.rope_local_theta is not None
    rule(window is not None and window >= model.context_length and not local,
         f"model.context_length={model.context_length} fits into a window of {window}",
         "model.attention_window", "model.window_pattern")  # fmt: skip
    rule(local and all(short), "all layers have a short window and turn by model.rope_local_theta",
         "model.rope_theta", *_keys("model.rope_scaling", scaling))  # fmt: skip
    rule(scaling.kind != "none" and scaling.factor == scaling.magnitude == 1,
         "model.rope_scaling.factor=1 makes the context no longer",
         *_keys("model.rope_scaling", scaling, "factor"))  # fmt: skip
    rule(scaling.kind == "none", "model.rope_scaling.kind=none scales nothing",
         *_keys("model.rope_scaling", scaling, "kind"))  # fmt: skip
    rule(scaling.kind not in ("yarn", "llama3"), f"model.rope_scaling.kind={scaling.kind} does not ask for it",
         "model.rope_scaling.original_context")  # fmt: skip
    rule(scaling.kind != "yarn", f"model.rope_scaling.kind={scaling.kind} is not yarn",
         *(f"model.rope_scaling.{key}" for key in ("beta_fast", "beta_slow", "attention_factor")))  # fmt: skip
    rule(scaling.kind != "llama3", f"model.rope_scaling.kind={scaling.kind} is not llama3",
         "model.rope_scaling.low_freq_factor", "model.rope_scaling.high_freq_factor")  # fmt: skip
    rule(moe.n_expert == 0, "model.moe.n_expert=0 is a dense model", *_keys("model.moe", moe, "n_expert"))
    rule(moe.n_shared == 0, "model.moe.n_shared=0 has no shared experts", "model.moe.shared_gate")
    rule(moe.balance != "loss", f"model.moe.balance={moe.balance} has no auxiliary loss", "model.moe.balance_weight")
    rule(moe.balance != "bias", f"model.moe.balance={moe.balance} has no bias", "model.moe.balance_rate")
    rule(moe.n_expert_used == moe.n_expert, "model.moe.n_expert_used=model.moe.n_expert keeps all experts equally busy",
         "model.moe.balance_weight", "model.moe.balance_rate")  # fmt: skip
    every_layer = all(model.has_experts(layer) for layer in range(model.n_layer))
    rule(every_layer and moe.n_inner is not None, "every layer has experts of model.moe.n_inner", "model.n_inner")
    rule(model.norm == "rmsnorm", "model.norm=rmsnorm has no biases", "model.norm_bias")
    rule(not model.norm_weight, "model.norm_weight=false leaves normalisations nothing to train", "model.norm_bias")
    rule(model.tie_embeddings, "model.tie_embeddings=true has no head of its own", "model.init_head_std")


def _keys(prefix: str, section: Section, *but: str) -> list[str]:
    return [f"{prefix}.{key}" for key in type(section).model_fields if key not in but]


def _data_rules(data: DataConfig, rule: Callable[..., None]) -> None:
    """What can have no effect in the section `data`."""
    rule(data.val is not None, "data.val gives the validation text", "data.val_fraction", "data.val_documents")
    rule(data.streaming, "data.streaming=true does not know how long the text is", "data.val_fraction")
    rule(data.streaming, "data.streaming=true shuffles within a buffer", "data.shuffle_tokens")
    rule(data.streaming, "data.streaming=true writes no files of tokens", "data.shard_tokens")
    rule(not data.streaming, "data.streaming=false reads the whole text first",
         "data.val_documents", "data.shuffle_buffer")  # fmt: skip
    rule(not data.shuffle, "data.shuffle=false keeps the text's order", "data.shuffle_tokens", "data.shuffle_buffer")
    rule(data.packing == "documents", "data.packing=documents shuffles the rows of the whole text",
         "data.shuffle_tokens")  # fmt: skip
    rule(not data.document_mask, "data.document_mask=false has one text in a row", "data.restart_positions")
    rule(not data.is_mixture, "the sources of data.train are no mixture", "data.max_epochs")
    stores = [s for s in [*(data.train or []), *(data.val or [])] if isinstance(s, SourceConfig) and s.shards]
    rule(not any("://" in str(s.shards) for s in stores), "no source of data.train or data.val is in a store",
         "data.store_cache_gb")  # fmt: skip


def fields(section: type[Section] = Config, prefix: str = "") -> dict[str, tuple[Any, Any, str]]:
    """Every dotted key of the tree: its type, default and help text."""
    found: dict[str, tuple[Any, Any, str]] = {}
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            found |= fields(kind, f"{prefix}{name}.")
        else:
            found[prefix + name] = (kind, field.get_default(call_default_factory=True), field.description or "")
    return found
