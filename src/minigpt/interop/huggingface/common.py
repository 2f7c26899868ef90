"""What most families share: the names that Llama gave to sizes and tensors, windows, rotary positions, biases.

Reading and writing stand side by side here, since one must understand what the other says.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minigpt.config import ModelConfig
from minigpt.interop.huggingface.options import Options
from minigpt.interop.tensors import Rule, rows, same

GATED = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_pytorch_tanh": "geglu_tanh",
    "gelu_new": "geglu_tanh",
    "gelu_fast": "geglu_tanh",
}
"""Our gated feed-forward layer by the name of the activation in transformers."""
PLAIN = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
"""Our feed-forward layer without a gate by that name."""

SLIDING, FULL = "sliding_attention", "full_attention"

Make = Callable[[str, str], Rule]
"""A rule of one tensor: `tensors.same` or one that changes it."""


# --- sizes


def read_sizes(options: Options, activations: Mapping[str, str] = GATED, **defaults: Any) -> dict[str, Any]:
    """Keys of `ModelConfig` for the sizes that nearly all classes name alike.

    activations: `mlp` by the activation's name; defaults: the class's, by its names.
    """

    def whole(key: str) -> int:
        return options.whole(key, defaults.get(key))

    n_embd, n_head = whole("hidden_size"), whole("num_attention_heads")
    n_kv_head = defaults.get("num_key_value_heads", n_head)
    if options.is_null("num_key_value_heads"):
        n_kv_head = n_head
    return {
        "n_layer": whole("num_hidden_layers"),
        "n_head": n_head,
        "n_kv_head": options.whole("num_key_value_heads", n_kv_head),
        "n_embd": n_embd,
        "head_dim": options.maybe_whole("head_dim") or defaults.get("head_dim") or max(1, n_embd // n_head),
        "n_inner": whole("intermediate_size"),
        "context_length": whole("max_position_embeddings"),
        "vocab_size": whole("vocab_size"),
        "norm_eps": options.number("rms_norm_eps", defaults.get("rms_norm_eps", 1e-6)),
        "tie_embeddings": options.flag("tie_word_embeddings", defaults.get("tie_word_embeddings", False)),
        "mlp": options.one_of("hidden_act", defaults.get("hidden_act", "silu"), activations),
        "norm": "rmsnorm",
        "position": "rope",
        "qk_norm": "none",
    }


def write_sizes(config: ModelConfig, activations: Mapping[str, str] = GATED) -> dict[str, Any]:
    """The inverse of `read_sizes`."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": config.inner_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": activation(config, activations),
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": 0.0,
    }


def activation(config: ModelConfig, known: Mapping[str, str]) -> str:
    """The name in transformers of our feed-forward layer's activation; the first of `known` if it is none of them."""
    return next((name for name, ours in known.items() if ours == config.mlp), next(iter(known)))


# --- windows


def read_windows(kinds: Sequence[str], window: int | None, options: Options) -> dict[str, Any]:
    """`attention_window` and `window_pattern` of each layer's kind, as the shortest pattern that repeats to them."""
    n_layer = options.whole("num_hidden_layers", len(kinds))
    if len(kinds) != n_layer:
        raise options.refusal("layer_types", kinds, f"it has {len(kinds)} entries for {n_layer} layers")
    for kind in kinds:
        if kind not in (SLIDING, FULL):
            raise options.refusal("layer_types", kind, f"minigpt knows {FULL} and {SLIDING}")
    if window is None or SLIDING not in kinds:
        return {"attention_window": None}
    letters = ["S" if kind == SLIDING else "L" for kind in kinds]
    periods = range(1, n_layer + 1)
    period = next(p for p in periods if all(letter == letters[i % p] for i, letter in enumerate(letters)))
    return {"attention_window": window, "window_pattern": "".join(letters[:period])}


def layer_types(config: ModelConfig) -> list[str]:
    """Each layer's kind."""
    return [FULL if config.window(layer) is None else SLIDING for layer in range(config.n_layer)]


def some_window(config: ModelConfig) -> int:
    """The window, for classes that want a number even if no layer has one."""
    return config.attention_window or config.context_length


# --- rotary positions


def read_rope(options: Options, theta: float = 10000.0, partial: float | None = None) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and, if the class has it (its default is `partial`), `partial_rotary_factor`."""
    rope = options.section("rope_scaling") or options.section("rope_parameters") or Options({}, options.architecture)
    found = read_rope_section(rope, options, theta)
    if partial is None:
        for place in (options, rope):
            place.require("partial_rotary_factor", 1, 1.0)
        return found
    whole_model = options.number("partial_rotary_factor", partial)
    return {**found, "partial_rotary_factor": rope.number("partial_rotary_factor", whole_model)}


def read_rope_section(rope: Options, options: Options, theta: float) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of one kind of layer."""
    found = {"rope_theta": rope.number("rope_theta", options.number("rope_theta", theta))}
    known = {"default": "none", "linear": "linear", "dynamic": "none", "yarn": "yarn", "llama3": "llama3"}
    word = rope.one_of("rope_type", rope.one_of("type", "default", {name: name for name in known}), known)
    if word == "none":  # "dynamic" changes nothing up to max_position_embeddings, which is our context_length
        return found
    original = options.maybe_whole("original_max_position_embeddings")
    original = original or rope.maybe_whole("original_max_position_embeddings")
    context = options.whole("max_position_embeddings")
    scaling: dict[str, Any] = {"kind": word, "factor": rope.number("factor", context / (original or context))}
    if word == "llama3":
        scaling |= {key: rope.number(key) for key in ("low_freq_factor", "high_freq_factor")}
    if word == "yarn":
        rope.require("truncate", True)
        scaling |= {key: rope.number(key, value) for key, value in (("beta_fast", 32.0), ("beta_slow", 1.0))}
        scaling["attention_factor"] = yarn_attention_factor(rope, scaling["factor"])
    if word in ("yarn", "llama3"):
        scaling["original_context"] = original or context
    return {**found, "rope_scaling": scaling}


def yarn_attention_factor(rope: Options, factor: float) -> float | None:
    """What cos and sin are multiplied by; None means the usual."""
    stated = rope.maybe_number("attention_factor")
    one, all_dim = rope.maybe_number("mscale"), rope.maybe_number("mscale_all_dim")
    if stated is None and one and all_dim and factor > 1:
        return (0.1 * one * math.log(factor) + 1.0) / (0.1 * all_dim * math.log(factor) + 1.0)
    return stated


def read_layered_rope(options: Options, theta: float, local: float | None, local_key: str) -> dict[str, Any]:
    """As `read_rope`, for classes whose sliding layers have rotary positions of their own, unless they are the same.

    theta, local: the class's defaults; local_key: what transformers 4 calls the latter (None: the former).
    """
    empty = Options({}, options.architecture)
    both = options.section("rope_parameters") or empty
    full = both.section(FULL) or options.section("rope_scaling") or empty
    found = read_rope_section(full, options, theta)
    default = options.number(local_key, found["rope_theta"] if local is None else local)
    sliding = read_rope_section(both.section(SLIDING) or Options({"rope_theta": default}, ""), empty, default)
    if sliding == found:
        return found
    if "rope_scaling" in sliding:
        raise options.refusal("rope_parameters", SLIDING, "minigpt scales no layers with a window alone")
    return {**found, "rope_local_theta": sliding["rope_theta"]}


def write_layered_rope(config: ModelConfig, local_key: str | None = None) -> dict[str, Any]:
    """The inverse of `read_layered_rope`."""
    said, full = write_rope(config), rope_parameters(config)
    local = config.rope_local_theta
    sliding = full if local is None else {"rope_type": "default", "rope_theta": local}
    said["rope_parameters"] = {FULL: full, SLIDING: sliding}
    return said if local_key is None else {**said, local_key: sliding["rope_theta"]}


def write_rope(config: ModelConfig, partial: bool = False) -> dict[str, Any]:
    """The inverse of `read_rope`, in the words of transformers 4 and 5."""
    parameters = rope_parameters(config)
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    fraction = {"partial_rotary_factor": config.partial_rotary_factor} if partial else {}
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling["rope_type"] == "default" else scaling | fraction,
        "rope_parameters": parameters | fraction,
        **fraction,
    }


def rope_parameters(config: ModelConfig) -> dict[str, Any]:
    """The object `rope_parameters` of transformers 5."""
    scaling = config.rope_scaling
    said: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if scaling.kind in ("linear", "yarn", "llama3"):
        said |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("yarn", "llama3"):
        said["original_max_position_embeddings"] = scaling.original_context
    if scaling.kind == "llama3":
        said |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
        said |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "attention_factor": scaling.magnitude}
    if scaling.kind == "ntk":  # a larger base, which is all that it is; no word of theirs means the same
        dim = config.rotary_dim
        said["rope_theta"] = config.rope_theta * scaling.factor ** (dim / (dim - 2)) if dim > 2 else config.rope_theta
    return said


# --- tensors


def outer_rules(config: ModelConfig, embed: str = "model.embed_tokens", norm: str = "model.norm",
                head: str = "lm_head", make: Make = same) -> list[Rule]:  # fmt: skip
    """Embedding, last norm and head."""
    rules = [same("embed.weight", f"{embed}.weight"), *norm_rules(config, "norm", norm, make)]
    return rules if config.tie_embeddings else [*rules, same("head.weight", f"{head}.weight")]


def norm_rules(config: ModelConfig, ours: str, theirs: str, make: Make = same) -> list[Rule]:
    """A norm over the width of the residual stream: its weight and, where there is one, its bias."""
    rules = [make(f"{ours}.weight", f"{theirs}.weight")] if config.norm_weight else []
    return [*rules, same(f"{ours}.bias", f"{theirs}.bias")] if config.has_norm_bias else rules


def attention_rules(config: ModelConfig, layer: int, theirs: str, out: str = "o_proj", make: Make = same) -> list[Rule]:
    """Attention of one layer with q_proj, k_proj, v_proj and `out`. make: for the norms of queries and keys."""
    ours = f"blocks.{layer}.attention"
    query, key = config.n_head * config.head_size, config.kv_heads * config.head_size
    parts = [f"{theirs}.{name}_proj" for name in "qkv"]
    rules = [rows(f"{ours}.qkv.weight", [f"{part}.weight" for part in parts], (query, key, key))]
    if config.has_qkv_bias:
        rules.append(rows(f"{ours}.qkv.bias", [f"{part}.bias" for part in parts], (query, key, key)))
    if config.qk_norm != "none" and config.norm_weight:
        rules += [make(f"{ours}.{name}.weight", f"{theirs}.{name}.weight") for name in ("q_norm", "k_norm")]
    rules.append(same(f"{ours}.out.weight", f"{theirs}.{out}.weight"))
    return [*rules, same(f"{ours}.out.bias", f"{theirs}.{out}.bias")] if config.has_out_bias else rules


def gated_rules(config: ModelConfig, ours: str, theirs: str, inner: int | None = None) -> list[Rule]:
    """A gated feed-forward layer with gate_proj, up_proj and down_proj, `inner` wide (None: the dense layer's)."""
    sizes = [inner or config.inner_size] * 2
    rules = []
    for kind in ("weight", "bias") if config.has_mlp_bias else ("weight",):
        rules.append(rows(f"{ours}.gate_up.{kind}", [f"{theirs}.{name}_proj.{kind}" for name in ("gate", "up")], sizes))
        rules.append(same(f"{ours}.down.{kind}", f"{theirs}.down_proj.{kind}"))
    return rules


def plain_rules(config: ModelConfig, ours: str, theirs: str, up: str, down: str) -> list[Rule]:
    """A feed-forward layer without a gate."""
    kinds = ("weight", "bias") if config.has_mlp_bias else ("weight",)
    return [
        same(f"{ours}.{mine}.{kind}", f"{theirs}.{name}.{kind}")
        for kind in kinds
        for mine, name in (("up", up), ("down", down))
    ]
