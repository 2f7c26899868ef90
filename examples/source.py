"""A source of text: sums such as `27+58=85`, as many as one wants, made while they are read.

    minigpt train examples/source.yaml
    minigpt generate runs/source --prompt "27+58=" --temperature 0 --max-new-tokens 4

Adding is a task in which it is plain whether a model has understood something. It is hard from left to right, since the
first digit of a sum depends on all the carries behind it; with `reverse` the answer's digits come in the order in which
people work them out, and far fewer examples do (Lee et al. 2023, "Teaching Arithmetic to Small Transformers").
"""

import random
from collections.abc import Iterator

from pydantic import Field

from minigpt import DataSource, Section


class Sums(DataSource):
    """Random sums, a document each."""

    class Config(Section):
        documents: int = Field(10_000, ge=1)
        """How many sums."""
        digits: int = Field(2, ge=1)
        """Numbers have up to so many digits."""
        reverse: bool = False
        """Write the digits of the answer from the last to the first."""
        seed: int = 0
        """Another seed gives other sums."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def documents(self) -> Iterator[str]:
        """The sums, each time the same: they are read more than once, and a run must be repeatable."""
        draw = random.Random(self.config.seed)
        for _ in range(self.config.documents):
            a, b = draw.randrange(10**self.config.digits), draw.randrange(10**self.config.digits)
            answer = str(a + b)
            yield f"{a}+{b}={answer[::-1] if self.config.reverse else answer}\n"
