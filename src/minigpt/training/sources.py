"""What a run has seen of each of its sources."""

from minigpt.objectives import Objective
from minigpt.training.batches import StepBatch
from minigpt.training.loggers import Metrics


class SeenSources:
    """Target tokens of each source of a mixture so far, and how often it has been seen; nothing for a single source."""

    def __init__(self, objective: Objective) -> None:
        self.names: tuple[str, ...] = tuple(getattr(objective, "source_names", ()))
        self.tokens = dict.fromkeys(self.names, 0)
        self._objective = objective

    def add(self, batch: StepBatch) -> None:
        """Count the targets of a step."""
        for name, tokens in zip(self.names, batch.source_tokens, strict=True):
            self.tokens[name] += tokens

    def metrics(self, batch: StepBatch) -> Metrics:
        """`data/<source>/tokens` and `data/<source>/epoch` after the step of this batch."""
        if not self.names:
            return {}
        after = batch.rows[-1] + 1
        epochs = batch.stream.epochs if batch.stream else self._objective.epochs(after)  # type: ignore[attr-defined]
        found: Metrics = {}
        for name, epoch in zip(self.names, epochs, strict=True):
            found[f"data/{name}/tokens"] = self.tokens[name]
            found[f"data/{name}/epoch"] = round(epoch, 4)
        return found
