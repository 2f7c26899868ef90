"""An objective: teach the model to fill a gap in a text, and not only to go on at its end.

    minigpt train examples/objective.yaml

A language model reads from left to right. To make it fill a gap, some documents are rearranged before they are trained
on: <|prefix|> beginning <|suffix|> end <|middle|> what stood between them. Predicting the next token of that, as ever,
the model learns to write a middle that fits both sides, and gets hardly worse at ordinary text (Bavarian et al. 2022,
"Efficient Training of Language Models to Fill in the Middle": sections 3 and 4.2, the order PSM, at the level of the
context, of tokens instead of characters). To use it:

    model = minigpt.load("runs/objective")
    prompt = "<|prefix|>Tom has a <|suffix|> in the box.<|middle|>"
    print(model.generate(model.tokenizer.encode(prompt, allow_special=True)).text)
"""

from typing import Any

import numpy as np
from pydantic import Field

from minigpt import PretrainObjective, RequestError, Section, Tokenizer
from minigpt.objectives import IGNORED

MARKS = ("<|prefix|>", "<|suffix|>", "<|middle|>")


class FillInTheMiddle(PretrainObjective):
    """Pretraining in which some of the documents are rearranged. Validation stays as it is, so losses compare."""

    class Config(Section):
        rate: float = Field(0.5, ge=0, le=1)
        """Share of the documents that are rearranged."""

    # Beside its options, an objective is given what `PretrainObjective` is: the tokens, the seed, the tokenizer, ...
    def __init__(self, config: Config, *, tokenizer: Tokenizer, seed: int, **given: Any) -> None:
        super().__init__(tokenizer=tokenizer, seed=seed, **given)
        missing = [mark for mark in MARKS if mark not in tokenizer.special_tokens]
        if missing:
            lacks = " ".join(missing)
            raise RequestError(f"the tokenizer has no {lacks}: use bpe, with it in tokenizer.special_tokens")
        self.marks = [tokenizer.special_tokens[mark] for mark in MARKS]
        self.end, self.rate, self.seed = tokenizer.eot_id, config.rate, seed

    def row(self, index: int) -> dict[str, np.ndarray]:
        """Training row `index`. It must follow from the index alone: rows are made ahead, and again after a resume."""
        row = super().row(index)
        used = row["targets"] != IGNORED  # packed documents may leave positions empty, at the end
        window = np.append(row["ids"][used], row["targets"][used][-1])  # (T + 1,)
        draw = np.random.default_rng([self.seed, index])
        documents = np.split(window, np.flatnonzero(window == self.end) + 1)  # each but the last ends with `end`
        pieces = [self._rearranged(d, draw) if draw.random() < self.rate else d for d in documents]
        window = np.concatenate(pieces)[: len(window)]  # the marks make it longer: what is too much is cut off
        return {"ids": window[:-1], "targets": window[1:]}

    def _rearranged(self, document: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """Prefix, suffix, middle, with two cuts anywhere."""
        text = document[document != self.end]
        end = document[len(text) :]  # the mark of its end, or nothing
        first, second = sorted(draw.integers(0, len(text) + 1, size=2))
        prefix, suffix, middle = self.marks
        return np.concatenate([[prefix], text[:first], [suffix], text[second:], [middle], text[first:second], end])
