"""The loop, what surrounds it, and the run folder from config to finished model."""

from minigpt.training.callbacks import Callback, Checkpointing, EarlyStopping, Monitor, Samples
from minigpt.training.dry_run import DryRun, dry_run
from minigpt.training.loggers import JsonlLogger, Logger
from minigpt.training.run import Result, train
from minigpt.training.signals import StopRequested, StopSignals
from minigpt.training.trainer import Trainer

__all__ = [
    "Callback",
    "Checkpointing",
    "DryRun",
    "EarlyStopping",
    "JsonlLogger",
    "Logger",
    "Monitor",
    "Result",
    "Samples",
    "StopRequested",
    "StopSignals",
    "Trainer",
    "dry_run",
    "train",
]
