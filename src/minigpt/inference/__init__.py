"""Text from a model: sampling, streaming on the cache, and models loaded from disk. Importing this imports torch."""

from minigpt.inference.engine import (
    Event,
    FinishReason,
    Generation,
    check_vocabulary,
    evaluating,
    generate,
    generate_stream,
    start_token,
)
from minigpt.inference.loaded import LoadedModel, load, pick_device
from minigpt.inference.text_stream import TextStream

__all__ = [
    "Event",
    "FinishReason",
    "Generation",
    "LoadedModel",
    "TextStream",
    "check_vocabulary",
    "evaluating",
    "generate",
    "generate_stream",
    "load",
    "pick_device",
    "start_token",
]
