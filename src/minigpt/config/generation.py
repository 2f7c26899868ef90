"""How text is drawn from a model: the fields become options of `minigpt generate` and of the Python calls."""

from pydantic import Field

from minigpt.config.base import Section


class GenerationConfig(Section):
    """Sampling settings, named as in Hugging Face transformers."""

    max_new_tokens: int = Field(200, ge=1)
    """Stop after this many tokens."""
    temperature: float = Field(1.0, ge=0)
    """Divide the logits by this; 0 takes the most likely token each time."""
    top_k: int | None = Field(None, ge=1)
    """Draw from the K most likely tokens only."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Draw from the smallest set of tokens whose probability reaches P (nucleus sampling)."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Drop tokens less likely than this share of the most likely one."""
    repetition_penalty: float = Field(1.0, gt=0)
    """Above 1, makes tokens that already occurred less likely."""
    stop: list[str] = Field([])
    """End before any of these strings."""
    seed: int | None = None
    """Seed of the drawing; the same seed gives the same text."""
    num_samples: int = Field(1, ge=1, le=1024)
    """How many texts to draw."""
