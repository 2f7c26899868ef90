"""The architectures of llama.cpp that models of ours can be, and the choice of one.

What each is fixed to is what its file in llama.cpp's src/models computes, whatever a GGUF file says. Some fixed things
are there in ours after a rewrite of the weights that leaves the function as it is: biases of zeros, norms with weights
of ones, a head that is a copy of the embedding, a shared expert of zeros (`fitted`), and factors that go into the
matrices (`folded`, see `interop.folding`).
"""

from dataclasses import dataclass
from typing import Any

from minigpt.config import ModelConfig, RequestError
from minigpt.config.architecture import RopeScalingConfig
from minigpt.config.extension import Extension
from minigpt.interop.folding import folded
from minigpt.interop.gguf.architecture import Architecture
from minigpt.interop.gguf.experts import Experts
from minigpt.interop.gguf.tensors import rules
from minigpt.interop.gguf.windows import Windows
from minigpt.interop.meaning import differences

LISTED = 6  # of a list with an entry for each layer, in a message
_RMS = {"norm": "rmsnorm", "norm_place": "pre", "position": "rope", "mlp": "swiglu"}
_LAYER = {"norm": "layernorm", "norm_place": "pre", "position": "rope", "mlp": "gelu_tanh"}
_GEMMA = {**_RMS, "norm_place": "sandwich", "mlp": "geglu_tanh"}
_SOFTMAX = {"router": "softmax"}
_GRANITE_FACTORS = {
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logit_multiplier": "logit_scale",
    "attention_scale": "attention.scale",
}
_EVERY = ("qkv_bias", "out_bias", "mlp_bias")

ARCHITECTURES = (
    Architecture(
        "gpt2",
        {"norm": "layernorm", "norm_place": "pre", "position": "learned", "mlp": "gelu_tanh", "qk_norm": "none"},
        always=_EVERY,
        fused=True,
    ),
    Architecture("qwen3", {**_RMS, "qk_norm": "head"}, wide_heads=True),
    Architecture("qwen2", {**_RMS, "qk_norm": "none"}, always=("qkv_bias",)),
    Architecture("olmo2", {**_RMS, "qk_norm": "full", "norm_place": "post"}, head="own", windows=Windows("same")),
    Architecture(
        "llama",
        {**_RMS, "qk_norm": "none"},
        maybe=_EVERY,
        wide_heads=True,
        interleaved=True,
        tables=True,
    ),
    Architecture(
        "arcee",
        {**_RMS, "mlp": "relu2", "qk_norm": "none"},
        maybe=("qkv_bias",),
        wide_heads=True,
        interleaved=True,
        tables=True,
    ),
    Architecture(
        "gemma3",
        {**_GEMMA, "qk_norm": "head"},
        wide_heads=True,
        windows=Windows("own"),
        scaled_embeddings=True,
        factors={"logit_softcap": "final_logit_softcapping"},
        mean_width_layers=62,
    ),
    Architecture(
        "gemma2",
        {**_GEMMA, "qk_norm": "none"},
        head="tied",
        wide_heads=True,
        windows=Windows("scaled", always=True),
        scaled_embeddings=True,
        factors={"attention_softcap": "attn_logit_softcapping", "logit_softcap": "final_logit_softcapping"},
        defaults={"attention_softcap": 50.0, "logit_softcap": 30.0},
        mean_width_layers=46,
    ),
    Architecture("exaone4", {**_RMS, "qk_norm": "head", "norm_place": "post"}, other_layers=64),
    Architecture("starcoder2", {**_LAYER, "qk_norm": "none"}, always=_EVERY),
    Architecture(
        "gptneox",
        {**_LAYER, "qk_norm": "none"},
        always=_EVERY,
        head="own",
        fused=True,
        partial=True,
        factors={"parallel_residual": "use_parallel_residual"},
    ),
    Architecture(
        "stablelm",
        {**_LAYER, "mlp": "swiglu", "qk_norm": "none"},
        maybe=("qkv_bias",),
        head="own",
        partial=True,
    ),
    Architecture(
        "granite",
        {**_RMS, "qk_norm": "none"},
        maybe=_EVERY,
        wide_heads=True,
        interleaved=True,
        tables=True,
        factors=_GRANITE_FACTORS,
    ),
    Architecture(
        "qwen3moe",
        {**_RMS, "qk_norm": "head"},
        wide_heads=True,
        experts=Experts({**_SOFTMAX, "normalize": True}),
    ),
    Architecture(
        "llama",
        {**_RMS, "qk_norm": "none"},
        maybe=("qkv_bias", "out_bias"),
        wide_heads=True,
        interleaved=True,
        tables=True,
        experts=Experts({**_SOFTMAX, "normalize": True}, size_key="feed_forward_length"),
    ),
    Architecture("olmoe", {**_RMS, "qk_norm": "full"}, head="own", experts=Experts({**_SOFTMAX, "normalize": False})),
    Architecture(
        "qwen2moe",
        {**_RMS, "qk_norm": "none"},
        always=("qkv_bias",),
        head="own",
        experts=Experts({**_SOFTMAX, "normalize": False, "shared_gate": True}, shared="wide"),
    ),
    Architecture(
        "dots1",
        {**_RMS, "qk_norm": "head"},
        head="own",
        wide_heads=True,
        multi_head=True,
        experts=Experts({}, shared="counted", free=True),
    ),
    Architecture(
        "deepseek2", {**_RMS, "qk_norm": "none"}, latent=True, experts=Experts({}, shared="counted", free=True)
    ),
)


@dataclass(frozen=True)
class Representation:
    """An architecture of llama.cpp that computes the same function as a model."""

    architecture: Architecture
    folded: ModelConfig
    """The model after factors have gone into its matrices (see `interop.folding`)."""
    config: ModelConfig
    """The model as the architecture has it, with parts that do nothing (`interop.huggingface.represent.rewrite`)."""


def find(name: str, experts: bool) -> Architecture:
    """The architecture of a file. RequestError: there is none of that name here."""
    for architecture in ARCHITECTURES:
        if architecture.name == name and (architecture.experts is not None) == experts:
            return architecture
    known = sorted({architecture.name for architecture in ARCHITECTURES})
    raise RequestError(f"the GGUF architecture {name!r} is not known here: known ones are {', '.join(known)}")


def represent(config: ModelConfig) -> Representation:
    """The first architecture that says a model exactly, rewritten as little as possible.

    RequestError with the nearest one and what it lacks if none does.
    """
    if isinstance(config.mlp, Extension):
        raise RequestError(f"no GGUF architecture represents this model: model.mlp={config.mlp} is a class of your own")
    if config.embedding_size is not None:
        raise RequestError(
            f"no GGUF architecture has factorised embeddings (model.embedding_size={config.embedding_size}); "
            "nearest: train with model.embedding_size=null"
        )
    config = _plain(config)
    candidates = [a for a in ARCHITECTURES if (a.experts is not None) == (config.moe.n_expert > 0)]
    nearest: tuple[int, Architecture, dict[str, tuple[Any, Any]]] | None = None
    for folds in (False, True):
        for fits in (False, True):
            for architecture in candidates:
                model = folded(config, keep=architecture.factors) if folds else config
                fitting = fitted(model, architecture) if fits else model
                try:
                    lacking = unrepresented(architecture, fitting)
                except RequestError:  # one of its own rules: nothing that it could be made to say
                    continue
                if not lacking:
                    return Representation(architecture, model, fitting)
                if nearest is None or len(lacking) < nearest[0]:
                    nearest = len(lacking), architecture, lacking
    if nearest is None:
        raise RequestError("no GGUF architecture represents this model")
    _, architecture, lacking = nearest
    reasons = [_reason(key, *pair) for key, pair in lacking.items() if pair[0] is not None or len(lacking) == 1]
    raise RequestError(
        f"no GGUF architecture represents this model: the nearest, {architecture.name}, has {' and '.join(reasons)}"
    )


def unrepresented(architecture: Architecture, config: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """Keys of `config` that the architecture cannot say: what they are, and what it would make of them."""
    names = {name for rule in rules(architecture, config) for name in rule.theirs}
    return differences(config, architecture.read(architecture.write(config), names))


def fitted(config: ModelConfig, architecture: Architecture) -> ModelConfig:
    """The config with parts that the architecture always has and that do nothing."""
    update: dict[str, Any] = {"norm_weight": True, **dict.fromkeys(architecture.always, True)}
    if config.norm == "layernorm":
        update["norm_bias"] = True
    if architecture.head == "own":
        update["tie_embeddings"] = False
    if architecture.multi_head:
        update["n_kv_head"] = config.n_head
    if architecture.experts is not None and architecture.experts.shared == "counted" and not config.moe.n_shared:
        update["moe"] = config.moe.model_copy(update={"n_shared": 1})
    return config.model_copy(update=update)


def _plain(config: ModelConfig) -> ModelConfig:
    """The same function in the simplest words: no padded vocabulary, a larger base for NTK, no idle windows."""
    update: dict[str, Any] = {"vocab_multiple": 1, "init_from": None}
    scaled, turning = config.rope_scaling, config.rotary_dim
    if config.rope_local_theta == config.rope_theta and scaled.kind == "none":
        update["rope_local_theta"] = None
    same_rotation = update.get("rope_local_theta", config.rope_local_theta) is None
    if config.attention_window is not None and config.attention_window >= config.context_length and same_rotation:
        update["attention_window"] = None
    if scaled.kind == "ntk" and turning > 2:
        update["rope_theta"] = config.rope_theta * scaled.factor ** (turning / (turning - 2))
        update["rope_scaling"] = RopeScalingConfig()
    return config.model_copy(update=update)


def _reason(key: str, ours: Any, theirs: Any) -> str:
    """What an architecture has in the place of an option of the model."""
    key = f"model.{key.removeprefix('model.')}"
    if theirs is None or isinstance(theirs, bool | list):
        return f"no {key}={_value(ours)}"
    return f"{key}={_value(theirs)} instead of {_value(ours)}"


def _value(value: Any) -> str:
    """As it would be written in a config."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return "[" + ",".join(map(_value, value[:LISTED])) + (",..." if len(value) > LISTED else "") + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
