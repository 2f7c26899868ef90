"""Where metrics, histograms and samples go: the run's own files always, and the tools that people like to watch with.

A logger of your own is named in the config, `loggers.own=[{kind: path/to/file.py:Class, ...}]`, and is made from its
options alone: `Class(config)`.
"""

from minigpt.training.loggers.background import BackgroundLogger
from minigpt.training.loggers.base import Histogram, Logger, Metrics, RunInfo
from minigpt.training.loggers.jsonl import JsonlLogger
from minigpt.training.loggers.logbook import LogBook, SilentLogBook
from minigpt.training.loggers.make import make_loggers

__all__ = [
    "BackgroundLogger",
    "Histogram",
    "JsonlLogger",
    "LogBook",
    "Logger",
    "Metrics",
    "RunInfo",
    "SilentLogBook",
    "make_loggers",
]
