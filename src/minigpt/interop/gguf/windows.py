"""Layers that see only the last tokens, in GGUF's keys: one width, and a list of the layers that have it.

llama.cpp's window of W tokens has the current one among them, as ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from minigpt.config import ModelConfig, RequestError

WINDOW, PATTERN, LOCAL_BASE = "attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa"


@dataclass(frozen=True)
class Windows:
    """What an architecture does in layers with a window."""

    rotation: Literal["same", "own", "scaled"]
    """Positions there have the base of all layers, unscaled (OLMo 3); a base of their own, unscaled (Gemma 3); or are
    scaled like all others (Gemma 2)."""
    always: bool = False
    """It has windows of a default width if nothing is said."""

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """The keys; none for a model without windows, if that is possible."""
        short = [config.window(layer) is not None for layer in range(config.n_layer)]
        if not any(short) and not self.always:
            return {}
        if not any(short):  # windows that see everything
            window, short, base = config.context_length, [True] * config.n_layer, config.rope_theta
        else:
            window, base = (
                config.attention_window or config.context_length,
                config.rope_local_theta or config.rope_theta,
            )
        return {WINDOW: window, PATTERN: short, **({} if self.rotation == "same" else {LOCAL_BASE: base})}

    def read(self, keys: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """The options, given those of the rotation. RequestError: no options represent the keys."""
        window, pattern = keys.get(WINDOW, 0), keys.get(PATTERN)
        if not window and not self.always:
            return {}
        if not isinstance(pattern, list) or not window:
            raise RequestError("the GGUF file does not list which of its layers have a window, so it cannot be read")
        if not any(pattern):
            return {}
        theta, scaling = options["rope_theta"], options.get("rope_scaling", {"kind": "none"})["kind"]
        local = theta if self.rotation == "same" else keys.get(LOCAL_BASE, 10000.0)
        if self.rotation == "scaled" and local == theta:
            local = None
        if scaling == "none" and local == theta:
            local = None
        impossible = {"same": False, "own": scaling == "yarn", "scaled": scaling != "none" and local is not None}
        if impossible[self.rotation]:
            raise RequestError("the GGUF file scales the rotation in layers with a window, which no option does")
        return {
            "attention_window": window,
            "window_pattern": "".join("S" if each else "L" for each in pattern),
            "rope_local_theta": local,
        }
