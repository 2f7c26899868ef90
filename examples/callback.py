"""A callback: average the weights over the steps, which often gives a better model than the last weights are.

    minigpt train examples/callback.yaml
    minigpt eval runs/callback/model          # the last weights
    minigpt eval runs/callback/average        # their average

A step of training follows the gradient of one batch, so the weights jitter around the way downhill. An average over
the last steps cancels much of that (Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging").
This one is exponential: a weight's average keeps the share `decay` of itself at each step.
"""

import torch
from pydantic import Field
from torch import Tensor

from minigpt import Callback, Section, Trainer
from minigpt.storage import save_model


class WeightAverage(Callback):
    """Keeps an average of all weights, and writes it to RUN/average, a model like any other, at the end."""

    # The options: keys beside `kind` in the config. An unknown one, or one of the wrong type, is an error.
    class Config(Section):
        decay: float = Field(0.99, ge=0, lt=1)
        """Share of the average that stays at each step: with 0.99 it is about that of the last 100 steps."""

    def __init__(self, config: Config) -> None:
        self.decay = config.decay
        self.average: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer) -> None:
        """The average begins with the first weights; a run that goes on has it from its checkpoint."""
        known = self.average if trainer.step else trainer.model.state_dict()
        self.average = {name: weight.to(trainer.device, copy=True) for name, weight in known.items()}

    def on_before_optimizer_step(self, trainer: Trainer) -> None:
        """Take in the weights that the last step made, before this one changes them."""
        self._take_in(trainer.model.state_dict())

    def on_train_end(self, trainer: Trainer) -> None:
        """Take in the last weights, and write the average down."""
        self._take_in(trainer.model.state_dict())
        folder = trainer.run_dir / "average"
        save_model(folder, trainer.model.config, self.average, trainer.tokenizer, replace=True)
        trainer.say(f"the average of the weights: {folder}")

    @torch.no_grad()
    def _take_in(self, weights: dict[str, Tensor]) -> None:
        for name, weight in weights.items():
            self.average[name].lerp_(weight, 1 - self.decay)

    # What a checkpoint keeps, so that a run that is stopped and goes on ends with the same average to the last bit.
    # (Numbers and texts would go through `state_dict` and `load_state_dict`.)

    def tensors(self) -> dict[str, Tensor]:
        """The average."""
        return self.average

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on with the average of a checkpoint."""
        self.average = tensors
