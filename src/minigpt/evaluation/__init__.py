"""How good a model is: loss and bits per byte of a dataset, perplexity of a text. Importing this imports torch."""

from minigpt.evaluation.loss import LossResult, evaluate_loss
from minigpt.evaluation.perplexity import TextScore, TokenLoss, evaluate_text, per_token, score, sequence_losses

__all__ = [
    "LossResult",
    "TextScore",
    "TokenLoss",
    "evaluate_loss",
    "evaluate_text",
    "per_token",
    "score",
    "sequence_losses",
]
